"""How things are timed: in alternation, so that a noisy machine harms all alike."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.apart import Step, synchronize
from cola_train import hardware
from cola_train.config.schema import Config

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # enough to reach the device's speed


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one subject in each round, and the work of one step."""

    seconds: list[float]
    flops: float
    tokens: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.median

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.median

    def faster_than(self, other: "Timing") -> float:
        """Median over rounds of other's seconds over ours; pairs share the machine's mood."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def figures(self) -> dict[str, float | list[float]]:
        return {
            "tokens_per_second": self.tokens_per_second,
            "flops_per_second": self.flops_per_second,
            "step_seconds_median": self.median,
            "step_seconds_min": min(self.seconds),
            "step_seconds": self.seconds,
        }


def alternate(steps: Mapping[str, Step], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each step in `repeats` rounds, each of which runs every step once.

    `warmup` rounds before them are not timed. Every other round runs backwards.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warmup + repeats):
        for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
            synchronize()
            start = time.perf_counter()
            steps[name]()
            synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def product_step(dtype: torch.dtype, device: torch.device) -> tuple[Step, float]:
    """A large square product, the ceiling of what a step can reach here, and its FLOPs."""
    n = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * n**3


def precision_name(config: Config, device: torch.device) -> str:
    """fp32, bf16 or fp8: what train.precision stands for here."""
    return hardware.precision_on(device, config.train.precision)
