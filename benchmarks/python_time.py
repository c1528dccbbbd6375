"""The CPU time of a training step's Python: what a GPU waits for where its kernels are short.

A model of 24 layers whose kernels are of no size (width 64, one sequence of 16 tokens, one thread)
runs the trainer's step on the CPU; what is left is Python, torch's dispatch, autograd and Triton's.
Counted is the CPU time of the main thread, which no other program adds to. On a CPU the backward
pass runs in that thread too; on a GPU autograd has a thread of its own, for which the main one
waits, so a GPU is not used where there is one. Triton compiles and dispatches its kernels, but
nothing is launched: the call of cuLaunchKernel, a few microseconds each, is not in the figures.
RMSNorm is torch's own, as on a GPU.

`--against PATH` times another checkout too. Each side has a process of its own, and the two take
turns, step by step.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import Benchmark, Report, table
from cola_train.errors import UserError

HERE = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("python_time_worker.py")
METHODS, KERNELS, MODES = ("full", "cola"), ("torch", "triton"), ("eager", "compiled")
PARTS = ("forward", "backward", "rest")

Step = dict[str, float]  # seconds by part


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout's root")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS),
                        help="of cola; full rank has torch's alone")  # fmt: skip
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--layers", type=int, default=24, help="blocks (24)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=25, help="timed steps of each (25)")


def run(options: argparse.Namespace) -> Report:
    """Time every case.

    Raises:
        UserError: an option is wrong, or a checkout cannot be timed.
    """
    check(options)
    sides = {"here": HERE} | ({"against": options.against} if options.against else {})
    commits = {name: commit(path) for name, path in sides.items()}
    found: dict[str, dict[str, Any]] = {}
    for method, kernels, mode in cases(options):
        name = f"{method}, {kernels}, {mode}" if method != "full" else f"{method}, {mode}"
        case = [method, kernels, str(mode == "compiled"), str(options.layers), options.precision]
        print(f"{name} ...", file=sys.stderr, flush=True)
        steps = alternate(sides, case, options.repeats)
        found[name] = {side: figures(of) for side, of in steps.items()}
    results = {
        "layers": options.layers,
        "precision": options.precision,
        "repeats": options.repeats,
        "commits": commits,
        "cases": found,
    }
    return Report(results, text(results))


def check(options: argparse.Namespace) -> None:
    problems = []
    if options.overrides:
        problems.append(f"{options.overrides[0]}: this benchmark takes no config options; see -h")
    for name in ("layers", "repeats"):
        if getattr(options, name) < 1:
            problems.append(f"--{name}: must be at least 1, got {getattr(options, name)}")
    if options.against and not (options.against / "benchmarks" / "bare_config.py").is_file():
        problems.append(
            f"--against: {options.against} is no checkout of cola_train that can be timed; clone "
            "the repository there, at commit 5dacad5 or later"
        )
    if "triton" in options.kernels and importlib.util.find_spec("triton") is None:
        problems.append("--kernels: triton is not installed; --kernels torch leaves it out")
    if problems:
        raise UserError(*problems)


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Method, kernels and mode of all that is timed."""
    for method in options.methods:
        for kernels in ("torch",) if method == "full" else options.kernels:
            for mode in options.modes:
                yield method, kernels, mode


def alternate(
    sides: Mapping[str, Path], case: Sequence[str], repeats: int
) -> dict[str, list[Step]]:
    """`repeats` steps of each side's worker, which take turns; every other round backwards."""
    steps: dict[str, list[Step]] = {side: [] for side in sides}
    with ExitStack() as stack:
        workers = {side: stack.enter_context(worker(path, case)) for side, path in sides.items()}
        for side, process in workers.items():
            answer(process, side, sides[side])  # "ready"
        for number in range(repeats):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                print("step", file=workers[side].stdin, flush=True)
                steps[side].append(json.loads(answer(workers[side], side, sides[side])))
    return steps


@contextmanager
def worker(checkout: Path, case: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A worker on `checkout`'s code, which sees no GPU: one would run the backward pass in another
    thread."""
    path = [checkout.resolve(), checkout.resolve() / "kernels"]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    environment.pop("TRITON_INTERPRET", None)
    process = subprocess.Popen(
        [sys.executable, "-P", str(WORKER), *case],
        cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answer(process: "subprocess.Popen[str]", side: str, checkout: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise UserError(f"python_time: the step of {side} ({checkout}) failed; its error is above")
    return line


def figures(steps: list[Step]) -> dict[str, Any]:
    """Minimum and median over steps, of each part and of the whole, in ms."""
    milliseconds = {part: [1e3 * step[part] for step in steps] for part in PARTS}
    milliseconds["step"] = [1e3 * sum(step.values()) for step in steps]
    return {
        "min_ms": {part: min(of) for part, of in milliseconds.items()},
        "median_ms": {part: statistics.median(of) for part, of in milliseconds.items()},
        "ms": milliseconds,
    }


def commit(checkout: Path) -> str:
    """The checkout's commit, short; "unknown" without git."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def text(results: Mapping[str, Any]) -> str:
    sides = list(results["commits"])
    headers = ["ms, minimum", *PARTS, "step", "median"]
    rows = []
    for name, of in results["cases"].items():
        for side in sides:
            least = of[side]["min_ms"]
            row = [
                f"{name}, {results['commits'][side]}",
                *(f"{least[part]:.1f}" for part in (*PARTS, "step")),
                f"{of[side]['median_ms']['step']:.1f}",
            ]
            if len(sides) > 1:
                ours = of["here"]["min_ms"]["step"]
                row.append(f"{ours / least['step']:.2f}" if side == "against" else "")
            rows.append(row)
    if len(sides) > 1:
        headers.append("here / it")
    return "\n".join([
        f"CPU time of the main thread in a step, {results['layers']} layers of width 64, "
        f"{results['precision']}, {results['repeats']} steps",
        table(headers, rows),
        "rest: norm, clipping, optimizer and what is counted",
    ])  # fmt: skip


BENCHMARK = Benchmark(
    "CPU time of a step's Python, with kernels of no size (--against another checkout)",
    add_options,
    run,
)
