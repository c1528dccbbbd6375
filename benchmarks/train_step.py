"""Full-rank and CoLA training steps of one shape, as the trainer runs them, in alternation."""

import argparse
from contextlib import ExitStack

from benchmarks.apart import Step, apart
from benchmarks.report import Benchmark, Report, table
from benchmarks.timing import Timing, alternate, precision_name, product_step
from benchmarks.trainer import (
    add_options,
    random_batches,
    step_config,
    step_flops,
    step_tokens,
    trainer_step,
)
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config


def run(options: argparse.Namespace) -> Report:
    configs = {
        method: step_config(options, model="350m", method=method) for method in ("full", "cola")
    }
    memory = peak_memory(configs)

    config = configs["full"]
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    product, product_flops = product_step(
        hardware.compute_dtype(config.train.precision, device), device
    )
    batches = random_batches(config)
    steps = {name: trainer_step(c, device, batches) for name, c in configs.items()}
    seconds = alternate({**steps, "product": product}, options.repeats)
    timings = {
        name: Timing(seconds[name], step_flops(c), step_tokens(c)) for name, c in configs.items()
    }
    peak = Timing(seconds["product"], product_flops).flops_per_second

    ratio = timings["cola"].faster_than(timings["full"])
    ceiling = costs.training_flops_per_token(config) / costs.training_flops_per_token(
        configs["cola"]
    )
    figures = {
        "model": config.model.name,
        "layers": config.model.n_layers,
        "precision": precision_name(config, device),
        "batch_size": config.batch_size,
        "sequence_length": config.train.sequence_length,
        "repeats": options.repeats,
        "methods": {
            name: {
                **timing.figures(),
                "parameters": costs.parameters(configs[name]),
                "flops_per_token": costs.training_flops_per_token(configs[name]),
                "peak_memory_bytes": memory[name],
            }
            for name, timing in timings.items()
        },
        "product_flops_per_second": peak,
        "cola_over_full": ratio,
        "flop_ratio": ceiling,
        "fraction_of_flop_ratio": ratio / ceiling,
    }
    rows = [
        [
            name,
            f"{costs.parameters(configs[name]) / 1e6:.1f}M",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.median:.3f}",
            f"{min(timing.seconds):.3f}",
            f"{timing.flops_per_second / 1e9:,.0f}",
            f"{timing.flops_per_second / peak:.0%}",
            f"{memory[name] / 2**30:.2f}",
        ]
        for name, timing in timings.items()
    ]
    headers = [
        "",
        "parameters",
        "tokens/s",
        "s (median)",
        "s (min)",
        "GFLOP/s",
        "of product",
        "peak GiB",
    ]
    text = "\n".join(
        [
            f"{config.model.name}, {config.model.n_layers} layers, {figures['precision']}, "
            f"{config.batch_size} x {config.train.sequence_length} tokens a step, "
            f"{options.repeats} rounds",
            table(headers, rows),
            f"cola / full: {ratio:.2f}; ceiling (FLOP ratio): {ceiling:.2f}; "
            f"reached: {ratio / ceiling:.0%}",
            f"a large product here: {peak / 1e9:,.0f} GFLOP/s",
        ]
    )
    return Report(figures, text)


def build(config: Config) -> dict[str, Step]:
    """The step alone in its process, to see how much memory it takes."""
    device = distributed.start()
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    return {"step": trainer_step(config, device, random_batches(config))}


def peak_memory(configs: dict[str, Config]) -> dict[str, int]:
    """Bytes of each method in a process of its own: a process' peak never goes down again."""
    peaks = {}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(apart(build, c)) for name, c in configs.items()}
        for name, process in processes.items():
            step = process.steps()["step"]
            for _ in range(2):  # the first allocates the optimizer's state
                step()
            peaks[name] = process.peak_memory()
    return peaks


BENCHMARK = Benchmark(
    "full-rank and cola training steps in alternation, beside their FLOP ratio", add_options, run
)
