"""Each fused op against its reference in plain torch, that under torch.compile, and its floor.

Needs a GPU, torch, Triton and numpy: no more, installed or not, from a checkout's root. The
floors are those of docs/kernels.md, for an H100; what a large product and a large copy reach on the
GPU at hand is measured beside them.
"""

import argparse
import statistics
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch
from cola_kernels import unavailable
from cola_kernels.tools.floors import BYTES_PER_SECOND, FLOPS_PER_SECOND, SHAPES, Cost
from cola_kernels.tools.timing import Subject, gpu_seconds

from benchmarks.report import Benchmark, Report, table
from cola_train.errors import EXIT_DONE, EXIT_FAULT, UserError

if TYPE_CHECKING:  # it imports Triton, which may not be there
    from benchmarks.kernels_cases import Case

DEVICE = "cuda"
DTYPE = torch.bfloat16
TOLERANCE = 0.02  # of the reference's norm; bf16's rounding makes at most 0.005 of any of these ops
PRODUCT_SIZE, COPY_SIZE = 8192, 2**28  # rows and columns; elements
FASTER, OF_FLOOR = 1.2, 0.7  # what a fused op is to reach, or it goes


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--op", default="", help="only the uses whose name holds this")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (20)")


def run(options: argparse.Namespace) -> Report:
    """Time every case; an op that fails costs the others nothing.

    Raises:
        UserError: the kernels cannot run here, or an option is wrong.
    """
    check(options)
    import triton

    figures: dict[str, Any] = {
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "dtype": str(DTYPE).removeprefix("torch."),
        "rounds": options.rounds,
        "floor_flops_per_second": FLOPS_PER_SECOND,
        "floor_bytes_per_second": BYTES_PER_SECOND,
        **ceilings(options.rounds),
        "models": {},
    }
    texts = [
        f"a large product {figures['product_flops_per_second'] / 1e12:,.0f} TFLOP/s, a large copy "
        f"{figures['copy_bytes_per_second'] / 1e12:.2f} TB/s; floors: "
        f"{FLOPS_PER_SECOND / 1e12:.0f} and {BYTES_PER_SECOND / 1e12:.1f} (H100)"
    ]
    good = True
    for model in options.model:
        results = measure_model(model, options)
        figures["models"][model] = {"shape": vars(SHAPES[model]), "ops": results}
        shape = SHAPES[model]
        texts.append(f"{model}, {shape.n:,} tokens, d_ff {shape.d_ff}\n{results_table(results)}")
        good = good and all(result.get("correct", False) for result in results.values())
    return Report(figures, "\n\n".join(texts), EXIT_DONE if good else EXIT_FAULT)


def check(options: argparse.Namespace) -> None:
    reason = unavailable(DEVICE)
    problems = []
    if reason is not None:
        problems.append(f"kernels: needs an NVIDIA GPU, Ampere or later, and Triton: {reason}")
    if options.overrides:
        problems.append(f"{options.overrides[0]}: this benchmark takes no config options")
    if options.rounds < 1:
        problems.append(f"--rounds: must be at least 1, got {options.rounds}")
    if problems:
        raise UserError(*problems)


def measure_model(model: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures of every case at one shape, by name; progress goes to stderr."""
    from benchmarks.kernels_cases import cases

    results: dict[str, dict[str, Any]] = {}
    for case in cases(SHAPES[model], DTYPE, torch.device(DEVICE)):
        if options.op not in case.name:
            continue
        start = time.perf_counter()
        try:
            results[case.name] = measure(case, options.rounds)
        except Exception as error:  # time on a GPU is dear: the others are still to be measured
            traceback.print_exc()
            results[case.name] = {"failed": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - start
        print(f"{model}: {case.name} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    if not results:
        raise UserError(f"--op {options.op}: no op's name holds this; see docs/kernels.md")
    return results


def measure(case: "Case", rounds: int) -> dict[str, Any]:
    """Time one case three ways, and compare the results of two."""
    from benchmarks.kernels_cases import LIBRARIES

    torch.compiler.reset()  # each case compiles for its own shapes, and not for those before too
    subjects: dict[str, Subject] = {
        name: case.subject(case.op(library)) for name, library in LIBRARIES.items()
    }
    error = difference(subjects["fused"], subjects["reference"])
    compiled = torch.compile(case.op(LIBRARIES["reference"]), fullgraph=True, dynamic=False)
    subjects["compiled"] = case.subject(compiled)
    return case_figures(case.cost, gpu_seconds(subjects, rounds), error)


def difference(ours: Subject, truth: Subject) -> float:
    """The largest of the tensors' errors, each relative to its norm; inf for one not finite."""
    largest = 0.0
    for a, b in zip(ours()(), truth()(), strict=True):  # type: ignore[call-overload]
        error = float((a.float() - b.float()).norm() / b.float().norm())
        largest = max(largest, error if error < float("inf") else float("inf"))
    return largest


def case_figures(cost: Cost, seconds: dict[str, list[float]], error: float) -> dict[str, Any]:
    """Everything that is said of one case."""
    median = {name: statistics.median(of) for name, of in seconds.items()}
    fused = median["fused"]
    faster = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["fused"], strict=True))
        for name in ("reference", "compiled")
    }
    return {
        "seconds_median": median,
        "seconds": seconds,
        "flops": cost.flops,
        "least_bytes": cost.bytes,
        "floor_seconds": cost.floor_seconds,
        "flops_per_second": cost.flops / fused,
        "bytes_per_second": cost.bytes / fused,
        "of_floor": cost.floor_seconds / fused,
        "faster_than": faster,
        "reached": faster["compiled"] >= FASTER and cost.floor_seconds / fused >= OF_FLOOR,
        "error": error,
        "correct": error <= TOLERANCE,
    }


def ceilings(rounds: int) -> dict[str, float]:
    """What a large product and a large copy reach on this GPU: FLOP/s and bytes/s."""
    n = PRODUCT_SIZE
    a, b = (torch.randn(n, n, device=DEVICE).to(DTYPE) for _ in range(2))
    source = torch.randn(COPY_SIZE, device=DEVICE).to(DTYPE)
    target = torch.empty_like(source)
    seconds = gpu_seconds(
        {"product": lambda: lambda: a @ b, "copy": lambda: lambda: target.copy_(source)}, rounds
    )
    moved = 2 * source.numel() * source.element_size()
    return {
        "product_flops_per_second": 2 * n**3 / statistics.median(seconds["product"]),
        "copy_bytes_per_second": moved / statistics.median(seconds["copy"]),
    }


def results_table(results: dict[str, dict[str, Any]]) -> str:
    headers = ["op", "fused µs", "floor µs", "of floor", "TFLOP/s", "TB/s",
               "reference µs", "faster", "compiled µs", "faster", "error", ""]  # fmt: skip
    rows = []
    for name, of in results.items():
        if "failed" in of:
            rows.append([name, *[""] * (len(headers) - 2), "FAILED"])
            continue
        median, faster = of["seconds_median"], of["faster_than"]
        verdict = "reached" if of["reached"] else ""
        rows.append([
            name,
            f"{median['fused'] * 1e6:,.0f}",
            f"{of['floor_seconds'] * 1e6:,.0f}",
            f"{of['of_floor']:.0%}",
            f"{of['flops_per_second'] / 1e12:.0f}",
            f"{of['bytes_per_second'] / 1e12:.2f}",
            f"{median['reference'] * 1e6:,.0f}",
            f"{faster['reference']:.2f}x",
            f"{median['compiled'] * 1e6:,.0f}",
            f"{faster['compiled']:.2f}x",
            f"{of['error']:.1e}",
            verdict if of["correct"] else "WRONG",
        ])  # fmt: skip
    note = f"reached: {FASTER} times torch.compile of the reference, {OF_FLOOR:.0%} of the floor"
    return f"{table(headers, rows)}\n{note}"


BENCHMARK = Benchmark(
    "fused ops against their references, torch.compile and their floors (GPU)", add_options, run
)
