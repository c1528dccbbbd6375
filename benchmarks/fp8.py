"""Validation loss of train.precision=fp8 beside bf16: the same runs, seed by seed.

On a CPU, where the trainer refuses fp8, these runs emulate it (`cola_kernels.fp8`): every operand
is rounded as on a GPU, and multiplied in bf16.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from cola_train import distributed
from cola_train.config.checks import fp8_problems, precision_problems
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.run.metrics import read_metrics
from cola_train.train import train

METHODS = ("full", "cola")
CHOSEN = ("method", "train.precision", "seed", "run_dir")
QUIET = {
    "checkpoint.every": "0", "evaluation.every": "0", "evaluation.sample_tokens": "0",
    "tracking": "local", "tracking.progress": "false",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N - 1")


def run(options: argparse.Namespace) -> Report:
    if options.seeds < 1:
        raise UserError(f"--seeds: must be at least 1, got {options.seeds}")
    for text in options.overrides:
        if (key := text.lstrip("+").split("=")[0]) in CHOSEN:
            raise UserError(f"{key}: leave {key}= out; the benchmark chooses it")
    figures = {
        method: losses(options.overrides, method, options.seeds) for method in options.methods
    }
    rows = [[method, *(spread(values) for values in of.values())] for method, of in figures.items()]
    headers = ["mean (least to most)", *next(iter(figures.values()))]
    return Report({"validation_losses": figures}, table(headers, rows))


def losses(overrides: Sequence[str], method: str, seeds: int) -> dict[str, list[float]]:
    """Of every seed: trained in bf16; the same weights, validated in fp8; trained in fp8."""
    of: dict[str, list[float]] = {"bf16": [], "bf16's weights in fp8": [], "fp8": []}
    for seed in range(seeds):
        chosen = {"method": method, "seed": str(seed), "train.precision": "bf16"}
        config = make_config(overrides, {**QUIET, **chosen})
        fp8 = in_fp8(config)  # refused before anything is trained
        with TemporaryDirectory() as folder:
            first = f"{folder}/bf16"
            runs = {
                "bf16": replace(config, run_dir=first),
                # no step is left to train
                "bf16's weights in fp8": replace(fp8, run_dir=f"{folder}/both", resume=first),
                "fp8": replace(fp8, run_dir=f"{folder}/fp8"),
            }
            for name, run in runs.items():
                of[name].append(loss(run))
    of["fp8 - bf16 of a seed"] = [b - a for a, b in zip(of["bf16"], of["fp8"], strict=True)]
    return of


def loss(config: Config) -> float:
    """The validation loss at the end of a run."""
    with redirect_stdout(sys.stderr):
        train(config)
    return float(read_metrics(Path(config.run_dir) / "metrics.jsonl")[-1]["val_loss"])


def in_fp8(config: Config) -> Config:
    """The same in fp8; a GPU must have it.

    Raises:
        UserError: the model or the GPU has no fp8.
    """
    config = replace(config, train=replace(config.train, precision="fp8"))
    problems = [*precision_problems(config, distributed.topology())]
    if distributed.device().type != "cpu":
        problems += fp8_problems(config, distributed.topology())
    if problems:
        raise UserError(*problems)
    return config


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


BENCHMARK = Benchmark("validation loss of fp8 beside bf16, emulated on a CPU", add_options, run)
