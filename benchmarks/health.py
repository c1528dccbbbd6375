"""What `health.every` costs: the trainer's step as it is, and the same step looked at, in
alternation on one model."""

import argparse
import statistics
from typing import Any

from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report
from benchmarks.timing import alternate, precision_name
from benchmarks.trainer import random_batches, step_tokens
from cola_train import distributed, hardware
from cola_train.errors import UserError
from cola_train.health.examination import Examination
from cola_train.train import build

EVERY = 100  # steps, that docs/health.md advises


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (9)")


def run(options: argparse.Namespace) -> Report:
    """Raises UserError for a wrong option."""
    if options.repeats < 1:
        raise UserError(f"--repeats: must be at least 1, got {options.repeats}")
    given = options.overrides
    config = make_config(given, {"model": "60m", "method": "cola", "health.every": str(EVERY)})
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    engine, batches = build(config, device), random_batches(config)
    examination = Examination(config, engine)

    def step() -> None:
        engine.train_step(batches, config.optim.lr / 100)

    def looked_at() -> None:
        examination.begin(batches)
        step()
        examination.figures()

    seconds = alternate({"step": step, "looked at": looked_at}, options.repeats)
    engine.close()
    pairs = zip(seconds["step"], seconds["looked at"], strict=True)
    more = statistics.median(with_ - without for without, with_ in pairs)
    usual, every = statistics.median(seconds["step"]), config.health.every
    figures: dict[str, Any] = {
        "step_seconds": seconds["step"],
        "looked_at_seconds": seconds["looked at"],
        "more_seconds_median": more,
        "every": every,
        "share": more / (every * usual),
    }
    text = (
        f"{config.model.name}, {config.method.name}, {precision_name(config, device)}, "
        f"{step_tokens(config):,} tokens a step, {options.repeats} rounds\n"
        f"a step: {usual:.3f} s (median); health: {more:.3f} s more (median of pairs)\n"
        f"health.every={every}: {figures['share']:.2%} of the time"
    )
    return Report(figures, text)


BENCHMARK = Benchmark("what looking at the health of bottlenecks costs", add_options, run)
