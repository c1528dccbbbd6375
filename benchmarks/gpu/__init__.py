"""What a GPU settles, by one command: `python -m benchmarks gpu`.

Runs every part of `parts.PARTS` in a process of its own, within its share of the time. After each
one the JSON file and the page of Markdown beside it are written anew, so that whatever ends the
command leaves what it has found. Needs torch, Triton and numpy alone.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.page import page
from benchmarks.gpu.parts import PARTS, Outcome
from benchmarks.gpu.runner import run_part
from benchmarks.gpu.sizes import FULL, TINY
from benchmarks.report import Benchmark, Report
from cola_train.errors import EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, UserError
from cola_train.files import write_json, write_text
from cola_train.planning.constants import StepConstants

FILE = Path("outputs/gpu.json")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts (10)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS),
                        metavar="PART", help=f"of: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="every part on the CPU at tiny shapes: its figures say nothing of a GPU",
    )  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    """Run the parts one after the other.

    Raises:
        UserError: there is no GPU, or an option is wrong.
    """
    check(options)
    options.json = options.json or FILE
    options.json.parent.mkdir(parents=True, exist_ok=True)
    sizes = TINY if options.dry_run else FULL
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + 60 * options.minutes
    interrupted = False
    for i, name in enumerate(options.parts):
        weights = [PARTS[other].weight for other in options.parts[i:]]
        seconds = max(1.0, (end - time.monotonic()) * weights[0] / sum(weights))
        print(f"{PARTS[name].title}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        folder = options.json.parent
        outcomes[name] = run_part(name, sizes, seconds, folder, outcomes)
        text = write(options, outcomes)
        if interrupted := outcomes[name].end == "interrupted":
            break
    print(f"\n{options.json} and {page_file(options)} have it all\n", file=sys.stderr, flush=True)
    wrong = outcomes.get("correctness") and not outcomes["correctness"].good
    code = EXIT_INTERRUPTED if interrupted else EXIT_FAULT if wrong else EXIT_DONE
    return Report(figures(options, outcomes), text, code)


def check(options: argparse.Namespace) -> None:
    problems = []
    if options.overrides:
        problems.append(f"{options.overrides[0]}: this benchmark takes no config options; see -h")
    if options.minutes <= 0:
        problems.append(f"--minutes: must be more than 0, got {options.minutes:g}")
    if not options.dry_run and not torch.cuda.is_available():
        problems.append(
            "gpu: this process sees no CUDA GPU; --dry-run goes through every part on a CPU"
        )
    if problems:
        raise UserError(*problems)


def write(options: argparse.Namespace, outcomes: dict[str, Outcome]) -> str:
    """Both files, as far as it has come; returns the page."""
    text = page(outcomes, options.dry_run)
    write_json(options.json, {"benchmark": "gpu", **figures(options, outcomes)})
    write_text(page_file(options), text)
    constants = outcomes["constants"].figures.get("constants") if "constants" in outcomes else None
    if constants and not options.dry_run:
        file = options.json.with_suffix(".constants.json")
        StepConstants(**constants).to_json(file, outcomes["constants"].device)
    return text


def page_file(options: argparse.Namespace) -> Path:
    file: Path = options.json
    return file.with_suffix(".md")


def figures(options: argparse.Namespace, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {
        "dry_run": options.dry_run,
        "minutes": options.minutes,
        "parts": {name: vars(outcome) for name, outcome in outcomes.items()},
    }


BENCHMARK = Benchmark(
    "all that a GPU settles in one go: kernels, steps, memory, a run, a verdict (GPU)",
    add_options,
    run,
)
