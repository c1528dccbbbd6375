"""One recipe against another at several widths: a table of comparisons that have run.

    python -m benchmarks recipe --folders docs/results/recipe-2m docs/results/recipe-3m

It trains nothing: each folder is one of `cola-compare`, whose ledger has the runs.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Benchmark, Report
from cola_train.compare.ledger import read_ledger
from cola_train.compare.plan import of_plan, plain, read_plan
from cola_train.compare.summary import summary
from cola_train.errors import UserError

SAME = 0.01  # of the baseline's FLOPs: what counts as equal


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folders", nargs="+", type=Path, required=True, help="one a width")
    parser.add_argument("--against", metavar="ARM", help="in place of each plan's baseline")


def run(options: argparse.Namespace) -> Report:
    """Arms by rows, folders by columns.

    Raises:
        UserError: a folder has no comparison, or the FLOPs of an arm are not the baseline's.
    """
    found = {folder.name: of_folder(folder, options.against) for folder in options.folders}
    names = list(dict.fromkeys(name for arms in found.values() for name in arms))
    figures = {
        name: {folder: arms[name] for folder, arms in found.items() if name in arms}
        for name in names
    }
    return Report(figures, "\n".join(lines(figures, list(found))))


def of_folder(folder: Path, base_name: str | None) -> dict[str, dict[str, Any]]:
    """Its arms that have whole runs, against that one, by default its baseline; the best first."""
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"folders: {folder} has no comparison; name one that cola-compare made")
    base_name = base_name or plan.baseline
    if base_name not in plan.arms:
        raise UserError(f"against: {folder} has no arm {base_name}: {', '.join(plan.arms)}")
    ended = of_plan(plan, read_ledger(folder).values())
    found = summary({**plain(plan), "baseline": base_name}, ended)
    arms = {arm["name"]: arm for arm in found["arms"] if arm["perplexity"] is not None}
    if base_name not in arms:
        raise UserError(f"folders: {folder} has no whole run of {base_name}")
    base = arms[base_name]
    for name, arm in arms.items():
        if abs(arm["flops"] / base["flops"] - 1) > SAME:
            raise UserError(
                f"folders: {name} in {folder} spends {arm['flops'] / base['flops']:.3f} of "
                f"{base_name}'s FLOPs; compare at budget=flops"
            )
    return {name: against(arm, base) for name, arm in arms.items()}


def against(arm: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of an arm; memory is planned, all parts together."""
    return {
        "perplexity": arm["perplexity"],
        "spread_percent": arm["spread_percent"],
        "seeds": arm["seeds"],
        "verdict": arm["against"]["words"],
        "percent": arm["against"]["percent"],
        "low_percent": arm["against"]["low_percent"],
        "high_percent": arm["against"]["high_percent"],
        "flops": arm["flops"] / base["flops"],
        "memory": arm["planned_memory"] / base["planned_memory"],
    }


def lines(figures: dict[str, dict[str, Any]], folders: Sequence[str]) -> Iterator[str]:
    """Markdown; after a change in perplexity its 95 % interval over seeds."""
    yield "| |" + "".join(f" {name}: perplexity | spread | FLOPs | memory |" for name in folders)
    yield "|---|" + "---:|---:|---:|---:|" * len(folders)
    for name, of in figures.items():
        yield f"| {name} |" + "".join(cells(of.get(folder)) for folder in folders)


def cells(of: dict[str, Any] | None) -> str:
    if of is None:
        return "  | | | |"
    change = ""
    if of["percent"] is not None:
        low, high = of["low_percent"], of["high_percent"]
        change = f" ({of['percent']:+.1f} %{'' if low is None else f': {low:+.1f} to {high:+.1f}'})"
    spread = "" if of["spread_percent"] is None else f"{of['spread_percent']:.1f} %"
    return f" {of['perplexity']:.2f}{change} | {spread} | {of['flops']:.3f} | {of['memory']:.2f} |"


BENCHMARK = Benchmark("recipes at equal FLOPs, of comparisons that have run", add_options, run)
