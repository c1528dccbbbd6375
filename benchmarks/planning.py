"""The paper's figures 1 and 5 for all five sizes, from the formulas: compute, size, memory by part;
and a step's time by part.

Nothing runs: these are the planner's figures. Tests hold FLOPs and memory to what was counted and
measured; times are a model's (docs/planning.md).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bare_config import bare_config
from benchmarks.report import Benchmark, Report, figure_of, table
from cola_train import costs
from cola_train.config.schema import Config
from cola_train.gpus import GPUS
from cola_train.parallel.topology import Topology
from cola_train.planning.estimate import Assumptions, step_time
from cola_train.planning.memory import PARTS, memory
from cola_train.planning.report import limit_line, plural, stack_bars, without_empty
from cola_train.planning.run import Run

SIZES = ("60m", "130m", "350m", "1b", "7b")
GPU = "h100-80gb"  # whose memory is drawn
WAYS = {  # name: method, recompute
    "full rank": ("full", "none"),
    "full rank, full recompute": ("full", "full"),
    "cola": ("cola", "none"),
    "cola, light": ("cola", "light"),
    "cola_m": ("cola", "cola_m"),
}
TIMED = {"1b": 1, "7b": 8}  # a size: on how many GPUs its step is timed
TIMED_WAYS = {  # name: method, recompute, kernels
    "full rank": ("full", "none", "torch"),
    "cola": ("cola", "none", "torch"),
    "cola, Triton": ("cola", "none", "triton"),
    "cola_m, Triton": ("cola", "cola_m", "triton"),
}
GIVEN = Assumptions(GPUS[GPU], 0.7, 400.0, 0.1)  # cola-plan's


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=32, help="sequences of one GPU at a time (32)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share all state (1)")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the figures there")


def run(options: argparse.Namespace) -> Report:
    compute = {size: compute_of(size) for size in SIZES}
    parts: dict[str, dict[str, dict[str, int]]] = {}
    for size in SIZES:
        parts[size] = {}
        for name, (method, recompute) in WAYS.items():
            config = config_of(size, method, recompute, options.batch * options.gpus)
            topology = Topology(options.gpus, min(options.gpus, 8))
            parts[size][name] = memory(Run(config, topology)).peak.parts
    first: list[Sequence[str]] = [
        [
            size,
            f"{of['full']['parameters'] / 1e6:,.1f}",
            f"{of['cola']['parameters'] / 1e6:,.1f}",
            f"{of['full']['parameters'] / of['cola']['parameters']:.2f}",
            f"{of['full']['training_flops_per_token'] / 1e9:.3f}",
            f"{of['cola']['training_flops_per_token'] / 1e9:.3f}",
            f"{flops_ratio(of):.2f}",
        ]
        for size, of in compute.items()
    ]
    headers = ["", "M parameters, full", "cola", "ratio", "GFLOP a token, full", "cola", "ratio"]
    second: list[Sequence[str]] = [
        [f"{size}, {name}", *(f"{of[part] / 2**30:.2f}" for part in PARTS),
         f"{sum(of.values()) / 2**30:.2f}"]
        for size, ways in parts.items()
        for name, of in ways.items()
    ]  # fmt: skip
    times = {size: times_of(size, options.batch) for size in TIMED}
    columns = [of for ways in times.values() for of in ways.values()]
    third: list[Sequence[str]] = [
        [part, *(f"{1e3 * of[part]:.1f}" for of in columns)]
        for part in columns[0]
        if any(of[part] for of in columns)
    ]
    third.append(["total", *(f"{1e3 * sum(of.values()):.1f}" for of in columns)])
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        draw_compute(compute, options.plots / "planning_compute.png")
        draw_memory(parts, options, options.plots / "planning_memory.png")
        draw_times(times, options, options.plots / "planning_step.png")
    text = [
        table(headers, first),
        "",
        f"GiB at the peak, {options.batch} x 256 tokens on each of {plural(options.gpus, 'GPU')}, "
        "bf16, FSDP2",
        table(["", *PARTS, "total"], second),
        "",
        f"ms of a step, {options.batch} x 256 tokens on each GPU, {timed_gpus()}, bf16, compiled, "
        f"{GPU} (modelled)",
        table(["", *(f"{size}, {name}" for size in times for name in TIMED_WAYS)], third),
    ]
    return Report(
        {"compute": compute, "memory_bytes": parts, "step_seconds": times}, "\n".join(text)
    )


def config_of(size: str, method: str, recompute: str, batch: int) -> Config:
    return bare_config(
        size, method, recompute, batch_size=batch, sequence_length=256, precision="bf16",
        compiled=False, kernels="triton",
    )  # fmt: skip


def times_of(size: str, batch: int) -> dict[str, dict[str, float]]:
    """Seconds of a step by part, for each of TIMED_WAYS."""
    gpus, times = TIMED[size], {}
    for name, (method, recompute, kernels) in TIMED_WAYS.items():
        config = bare_config(
            size, method, recompute, batch_size=batch * gpus, sequence_length=256,
            precision="bf16", compiled=True, kernels=kernels,
        )  # fmt: skip
        times[name] = step_time(Run(config, Topology(gpus, gpus)), GIVEN).every_part
    return times


def timed_gpus() -> str:
    return ", ".join(f"{size} on {plural(gpus, 'GPU')}" for size, gpus in TIMED.items())


def compute_of(size: str) -> dict[str, Any]:
    configs = {method: config_of(size, method, "none", 1) for method in ("full", "cola")}
    return {
        method: {
            "parameters": costs.parameters(config),
            "training_flops_per_token": costs.training_flops_per_token(config),
        }
        for method, config in configs.items()
    }


def flops_ratio(of: dict[str, Any]) -> float:
    ratio: float = of["full"]["training_flops_per_token"] / of["cola"]["training_flops_per_token"]
    return ratio


def draw_compute(compute: dict[str, Any], path: Path) -> None:
    """Training FLOPs a token against parameters, an arrow from full rank to CoLA."""
    figure, axes = figure_of(1, 1, (7, 4.5))
    points = {
        method: [
            (of[method]["parameters"], of[method]["training_flops_per_token"])
            for of in compute.values()
        ]
        for method in ("full", "cola")
    }
    axes.plot(*zip(*points["full"], strict=True), "s", color="tab:gray", label="full rank")
    axes.plot(*zip(*points["cola"], strict=True), "o", color="tab:red", label="CoLA")
    for size, start, end in zip(compute, points["full"], points["cola"], strict=True):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "alpha": 0.5})
        axes.annotate(size, start, xytext=(6, -10), textcoords="offset points")
    axes.set(
        xscale="log", yscale="log", xlabel="parameters", ylabel="training FLOPs a token",
        title="compute and size, sequences of 256 (modelled)",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_memory(parts: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """Memory by part, a row for each size: in GiB on one axis, and as a share of full rank's."""
    figure, panels = figure_of(len(SIZES), 2, (12, 9), sharex="col", sharey=True)
    totals = {size: [sum(of.values()) for of in ways.values()] for size, ways in parts.items()}
    limit = GPUS[GPU].memory_bytes
    for (left, right), (size, ways) in zip(panels, parts.items(), strict=True):
        stack_bars(left, ways)
        stack_bars(right, ways, totals[size][0] / 100, "{:.0f}")
        left.set_ylabel(size)
        left.axvline(limit / 2**30, color="black", lw=1, ls="--")
    limit_line(panels[0][0], max(map(max, totals.values())), limit, f"of an {GPU}")
    panels[-1][0].set_xlabel("GiB of one GPU at the peak of a step")
    panels[-1][1].set_xlabel("% of full rank without recomputation")
    panels[-1][1].set_xlim(0, 110)
    figure.suptitle(
        f"{options.batch} x 256 tokens at a time, {plural(options.gpus, 'GPU')} (modelled)"
    )
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, ncols=6, fontsize=9, loc="outside lower center")
    figure.savefig(path, dpi=90)


def draw_times(times: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """A step's time by part, a row for each size, each with the speed over full rank behind it."""
    figure, panels = figure_of(len(times), 1, (9, 6))
    for axes, (size, ways) in zip(panels, times.items(), strict=True):
        full = sum(ways["full rank"].values())
        faster = {name: full / sum(parts.values()) for name, parts in ways.items()}
        bars = {f"{name} ({faster[name]:.2f} x)": parts for name, parts in ways.items()}
        stack_bars(axes, without_empty(bars), 1e-3)
        axes.set_ylabel(f"{size}, {plural(TIMED[size], 'GPU')}")
        axes.margins(x=0.08)
    panels[-1].set_xlabel(f"ms of a step, {options.batch} x 256 tokens on each {GPU} (modelled)")
    figure.legend(
        *panels[-1].get_legend_handles_labels(), ncols=5, fontsize=9, loc="outside lower center"
    )
    figure.savefig(path, dpi=90)


BENCHMARK = Benchmark(
    "compute, size, memory and step time by part, by the planner (plots)", add_options, run
)
