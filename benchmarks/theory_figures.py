"""The figures of docs/theory.md."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import figure_of

STYLES = {
    "identity": ("tab:gray", "s"),
    "silu": ("tab:red", "o"),
    "gelu": ("tab:orange", "^"),
    "tanh": ("tab:blue", "D"),
    "relu": ("tab:green", "v"),
}


def draw_scale(curves: dict[str, Any], slopes: dict[str, Any], path: Path) -> None:
    """Left: linear targets, the error comes down to E_id. Right: bent ones, it goes below."""
    figure, panels = figure_of(1, 2, (11, 4.5))
    left, right = panels
    for axes, (case, curve) in zip(panels, curves.items(), strict=True):
        for name, errors in curve["errors"].items():
            change = np.array(errors) / curve["linear"] - 1
            axes.plot(curve["scales"], change, color=STYLES[name][0], label=name)
        axes.set(
            xlabel="scale of A (rms of A x)", ylabel="E / E_id - 1",
            title=f"{case}, rank {curve['rank']}" + ("; dashed: formula" if axes is right else ""),
        )  # fmt: skip
        axes.grid(alpha=0.3)
        bent = curve
    left.set(xscale="log", yscale="log", ylim=(1e-13, 10))
    for name in ("silu", "gelu"):
        tangent = slopes[name]["formula"] * np.array(bent["scales"]) / bent["linear"]
        right.plot(bent["scales"], tangent, "--", color=STYLES[name][0], lw=1)
    right.axhline(0, color="black", lw=1)
    right.set(ylim=(-0.1, 0.2))
    left.legend()
    figure.savefig(path, dpi=100)


def draw_ranks(errors: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The least error over the rank, a panel a kind of targets."""
    figure, panels = figure_of(2, 3, (12, 7), sharex=True)
    for axes, (name, rows) in zip(panels.flat, errors.items(), strict=True):
        ranks = [row["rank"] for row in rows]
        axes.fill_between(ranks, [row["floor"] for row in rows], color="lightgray", label="floor")
        axes.plot(
            ranks, [row["linear"] for row in rows], color="black", lw=3, alpha=0.3, label="E_id"
        )
        for sigma, (color, marker) in STYLES.items():
            found = [row["errors"][sigma] for row in rows]
            axes.plot(
                ranks, found, marker, ls="-", lw=1, color=color, ms=6, mfc="none", label=sigma
            )
        axes.set(xscale="log", xticks=ranks, title=name, ylim=(0, None))
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("share of the targets' energy")
    for axes in panels[-1]:
        axes.set_xlabel("rank")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, ncols=7, loc="outside lower center")
    figure.savefig(path, dpi=90)


def draw_bound(bounds: list[dict[str, Any]], path: Path) -> None:
    """Left: measured against bound. Right: the error that a share of the dense FLOPs buys."""
    figure, (left, right) = figure_of(1, 2, (11, 4.5))
    for number, case in enumerate(dict.fromkeys(row["case"] for row in bounds)):
        rows = [row for row in bounds if row["case"] == case]
        color = f"C{number}"
        errors = [row["error"] for row in rows]
        left.plot([row["bound"] for row in rows], errors, "o-", color=color, label=case)
        right.plot([row["cost"] for row in rows], errors, "o-", color=color)
    limits = (0.005, 1)  # ranks that leave less are full
    left.plot(limits, limits, "k--", lw=1)
    left.set(
        xscale="log", yscale="log", ylim=limits, xlabel="bound by effective rank",
        ylabel="SiLU's error",
        title="at the effective rank of the targets' linear part",
    )  # fmt: skip
    right.axvline(1, color="black", ls="--", lw=1)
    right.set(
        yscale="log", ylim=limits, xlim=(0, None), ylabel="SiLU's error",
        xlabel="FLOPs as a share of the dense layer's",
        title="what it costs; alpha 0.8 to 0.99, left to right",
    )  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=9)
    figure.savefig(path, dpi=100)
