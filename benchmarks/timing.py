"""Training steps to time, and how: in alternation, so that a noisy machine harms all alike."""

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.apart import Step, synchronize
from benchmarks.overrides import make_config
from cola_train import costs, hardware
from cola_train.config import Config
from cola_train.data.loader import Batch
from cola_train.engines import build_engine
from cola_train.errors import UserError
from cola_train.methods import build_method
from cola_train.parallel import apply_recompute, compile_blocks
from cola_train.train import build_model, uses_documents

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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that time steps; see `step_config`."""
    parser.add_argument("--batch", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (7)")


def step_config(options: argparse.Namespace, **defaults: str) -> Config:
    """The config to time: the user's overrides over `defaults`, `--batch` sequences a step.

    Raises:
        UserError: it is wrong, or names a method, which the benchmark chooses.
    """
    if any(text.startswith("method=") for text in options.overrides):
        raise UserError("method: this benchmark chooses the methods it times; leave method= out")
    if options.repeats < 1:
        raise UserError(f"--repeats: must be at least 1, got {options.repeats}")
    batch = {"train.batch_size": str(options.batch), "train.micro_batch_size": "null"}
    return make_config(options.overrides, batch | defaults)


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


def random_batches(config: Config) -> list[Batch]:
    """The micro-batches of one step: random tokens, in documents of about 100 tokens where the
    trainer would keep documents apart."""
    generator = torch.Generator().manual_seed(config.seed)
    B, T = config.micro_batch_size, config.train.sequence_length
    batches = []
    for _ in range(config.batch_size // B):
        window = torch.randint(config.model.vocab_size, (B, T + 1), generator=generator)
        documents = None
        if uses_documents(config):
            documents = (torch.rand(B, T, generator=generator) < 0.01).cumsum(1, dtype=torch.int32)
        batches.append(Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), documents))
    return batches


def trainer_step(config: Config, device: torch.device, batches: list[Batch]) -> Step:
    """One optimizer step exactly as the trainer runs it. Needs a process group."""
    method = build_method(config)
    model = build_model(config, method)
    apply_recompute(model, config.recompute)
    if config.train.compile:
        compile_blocks(model)
    engine = build_engine(config, model, method, device)

    def step() -> None:
        if engine.train_step(batches, config.optim.lr).skipped:
            raise RuntimeError("a step was not finite: its optimizer did not run")

    return step


def step_flops(config: Config) -> float:
    """FLOPs of one optimizer step, by costs.py."""
    return costs.training_flops_per_token(config) * step_tokens(config)


def step_tokens(config: Config) -> int:
    return config.batch_size * config.train.sequence_length


def product_step(dtype: torch.dtype, device: torch.device) -> tuple[Step, float]:
    """A large square product, the ceiling of what a step can reach here, and its FLOPs."""
    n = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * n**3


def precision_name(config: Config, device: torch.device) -> str:
    """fp32 or bf16: what train.precision stands for here."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[
        hardware.compute_dtype(config.train.precision, device)
    ]
