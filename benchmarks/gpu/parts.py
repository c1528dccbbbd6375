"""The parts of `gpu`, in order: a module each, with `measure` and `lines`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu.sizes import Sizes
from cola_train import hardware
from cola_train.gpus import GPUS, Gpu

Figures = dict[str, Any]


class Record:
    """Keeps each figure under its name, on disk at once: the process may be killed."""

    def __init__(self, write: Callable[[Figures], None]) -> None:
        self.figures: Figures = {}
        self._write = write

    def __call__(self, key: str, value: Any) -> None:
        self.figures[key] = value
        self._write(self.figures)


@dataclass(frozen=True)
class Given:
    """What a part measures with.

    earlier: figures of the parts before it, by name.
    """

    sizes: Sizes
    earlier: dict[str, Figures]

    def gpu(self, device: torch.device) -> Gpu | None:
        """Its data sheet; None if it is not in the table. In a dry run an H100's stands in."""
        if self.sizes.dry_run:
            return GPUS["h100-80gb"]
        return hardware.gpu_named(hardware.device_name(device))


@dataclass(frozen=True)
class Part:
    """weight: its share of the time. module: has measure(given, record), and lines(figures)."""

    title: str
    weight: float
    path: str

    @property
    def module(self) -> ModuleType:
        return import_module(self.path)


@dataclass
class Outcome:
    """end: done; cut, at its limit; failed; interrupted. good: nothing that it checked was wrong.
    fault: the last lines of stderr, if it failed."""

    end: str
    seconds: float
    limit: float
    good: bool = True
    fault: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)


PARTS = {
    "correctness": Part("Correctness of the kernels", 20, "benchmarks.gpu.correctness"),
    "ops": Part("Each op beside torch.compile and its floor", 20, "benchmarks.gpu.ops"),
    "graphs": Part("The step as one CUDA graph", 15, "benchmarks.gpu.graphs"),
    "steps": Part("The training step", 25, "benchmarks.gpu.steps"),
    "policies": Part("Recomputation: speed and memory", 12, "benchmarks.gpu.policies"),
    "training": Part("A training run", 10, "benchmarks.gpu.training"),
    "constants": Part("Constants for cola-plan", 8, "benchmarks.gpu.fit"),
}
