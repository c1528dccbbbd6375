"""Memory kept for the backward pass against FLOPs done again, for every method and policy.

By the formulas of costs.py, which tests hold to what is counted on the real modules.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare_config import bare_config
from benchmarks.recompute import CONTENDERS
from benchmarks.report import Benchmark, Report, figure_of, table
from cola_train import costs

BF16 = 2  # bytes
STYLES = {  # the first that is part of a point's name: marker, colour
    "full rank": ("s", "tab:gray"),
    "(torch)": ("o", "tab:blue"),
    "(triton)": ("D", "tab:red"),
    "cola": ("*", "tab:purple"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="1b", help="a file of configs/model (1b)")
    parser.add_argument("--sequence", type=int, default=256, help="tokens a sequence (256)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it there")


def run(options: argparse.Namespace) -> Report:
    points: dict[str, dict[str, float]] = {}
    for name, (method, policy) in CONTENDERS.items():
        config = bare_config(
            options.model, method, policy, batch_size=1, sequence_length=options.sequence,
            precision="bf16", compiled=False,
        )  # fmt: skip
        for kernels in ("torch", "triton"):
            fused = kernels == "triton"
            cost = costs.block_cost(config, fused)
            point = {
                "bytes_per_token": cost.saved_bytes(BF16),
                "recomputed_flops_per_token": cost.recomputed_flops,
                "recomputed_of_forward": cost.recomputed_flops / cost.forward_flops,
            }
            if point not in points.values():  # some do the same on either kernels
                differs = method == "cola" and policy in ("none", "full")
                points[f"{name} ({kernels})" if differs else name] = point
    if options.plot:
        draw(points, options)
    rows: list[Sequence[str]] = [
        [
            name,
            f"{of['bytes_per_token'] / 1024:.1f}",
            f"{of['recomputed_flops_per_token'] / 1e6:.1f}",
            f"{of['recomputed_of_forward']:.0%}",
        ]
        for name, of in points.items()
    ]
    headers = ["", "kept, KiB a token", "recomputed, MFLOP a token", "of the forward pass"]
    title = f"{options.model}, one block, bf16, sequences of {options.sequence}"
    return Report(
        {"model": options.model, "sequence_length": options.sequence, "points": points},
        f"{title}\n{table(headers, rows)}",
    )


def draw(points: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Scatter plot, a marker a method."""
    figure, axes = figure_of(1, 1, (8, 5))
    for name, of in points.items():
        marker, color = next(style for key, style in STYLES.items() if key in name)
        x, y = of["recomputed_flops_per_token"] / 1e6, of["bytes_per_token"] / 1024
        axes.plot(x, y, marker, color=color, markersize=8)
        axes.annotate(name, (x, y), xytext=(7, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="recomputed in the backward pass (MFLOP a token and block)",
        ylabel="kept for the backward pass (KiB a token and block)",
        title=f"{options.model}, bf16, sequences of {options.sequence}",
        ylim=(0, None),
    )
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, dpi=120)


BENCHMARK = Benchmark(
    "bytes kept against FLOPs recomputed, for every method and policy (a plot)", add_options, run
)
