"""Every method's training step at one shape, side by side: time in alternation, memory planned and
measured. Each method is in processes of its own."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import trainer
from benchmarks.apart import Step, apart
from benchmarks.peak import PeakMemory
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import Timing, alternate, precision_name
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config
from cola_train.methods import METHODS
from cola_train.model import cpu
from cola_train.parallel.topology import Topology
from cola_train.planning.memory import memory
from cola_train.planning.run import FP32, Run


def add_options(parser: argparse.ArgumentParser) -> None:
    trainer.add_options(parser)
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), metavar="METHOD",
        help=f"of: {', '.join(METHODS)} (all); the others' times are compared with the first one's",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    configs = {
        name: trainer.step_config(options, model="60m", method=name) for name in options.methods
    }
    first = next(iter(configs.values()))
    device = distributed.device()
    precision = precision_name(first, device)
    results = {name: counted(config, precision) for name, config in configs.items()}
    for name, config in configs.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            results[name]["measured_bytes"] = process.submit(measured_peak, config).result()
    with ExitStack() as stack:
        steps = {
            name: stack.enter_context(apart(build, config)).steps()["step"]
            for name, config in configs.items()
        }
        seconds = alternate(steps, options.repeats)
    timings = {
        name: Timing(seconds[name], trainer.step_flops(c), trainer.step_tokens(c))
        for name, c in configs.items()
    }
    for name, timing in timings.items():
        ratio = timings[options.methods[0]].faster_than(timing)
        results[name] |= {**timing.figures(), "time_ratio": ratio}
    figures = {
        "model": first.model.name,
        "layers": first.model.n_layers,
        "precision": precision,
        "batch_size": first.batch_size,
        "sequence_length": first.train.sequence_length,
        "repeats": options.repeats,
        "methods": results,
    }
    text = (
        f"{first.model.name}, {first.model.n_layers} layers, {precision}, {first.batch_size} x "
        f"{first.train.sequence_length} tokens a step, {options.repeats} rounds\n"
    )
    return Report(figures, text + results_table(results, options.methods[0]))


def counted(config: Config, precision: str) -> dict[str, Any]:
    """What the formulas say of a step of one process on this device."""
    train = replace(config.train, precision=precision)  # type: ignore[arg-type]
    on_cpu = distributed.device().type == "cpu"
    plan = Run(replace(config, train=train), Topology(1, 1), on_cpu=on_cpu)
    return {
        "parameters": costs.parameters(config),
        "trained_parameters": costs.parameters(config, trained=True),
        "optimizer_bytes": FP32 * sum(map(plan.optimizer_elements, plan.weights)),
        "flops_per_token": costs.training_flops_per_token(config),
        "planned_bytes": memory(plan).total,
    }


def build(config: Config) -> dict[str, Step]:
    """The step alone in its process."""
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    return {"step": trainer.trainer_step(config, device, trainer.random_batches(config))}


def measured_peak(config: Config) -> int:
    """Bytes of tensors at the peak of the second step, which finds the optimizer's state; with the
    attention of GPUs, which is planned."""
    cpu.PRODUCTS_LENGTH = 0
    if torch.cuda.is_available():
        step = build(config)["step"]
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with PeakMemory() as measured:
        with measured.phase("first"):
            step = build(config)["step"]
            step()
        with measured.phase("second"):
            step()
    distributed.stop()
    return measured.peak["second"]


def results_table(results: dict[str, dict[str, Any]], first: str) -> str:
    headers = ["", "M parameters", "M trained", "optimizer MB", "planned MB", "measured MB",
               "planned/measured", "ms a step", "ms (min)", f"of {first}'s time"]  # fmt: skip
    rows: list[Sequence[str]] = [
        [
            name,
            f"{of['parameters'] / 1e6:.1f}",
            f"{of['trained_parameters'] / 1e6:.1f}",
            f"{of['optimizer_bytes'] / 1e6:,.0f}",
            f"{of['planned_bytes'] / 1e6:,.0f}",
            f"{of['measured_bytes'] / 1e6:,.0f}",
            f"{of['planned_bytes'] / of['measured_bytes']:.2f}",
            f"{1e3 * of['step_seconds_median']:,.0f}",
            f"{1e3 * of['step_seconds_min']:,.0f}",
            f"{of['time_ratio']:.2f}",
        ]
        for name, of in results.items()
    ]
    return table(headers, rows)


BENCHMARK = Benchmark("memory and step time of every method at one shape", add_options, run)
