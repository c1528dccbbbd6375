"""The decode kernels beside torch's own and their floors, in CUDA graphs.

Needs a GPU, torch, Triton and numpy: no more, from a checkout's root. A graph holds a layer so
often, each time with weights of its own, that the L2 cache holds few of them; times are of one
layer. The floor is the bytes of the weights at the data sheet's bandwidth.
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from cola_kernels import unavailable
from cola_kernels.tools.floors import BANDWIDTHS, DECODED, Shape, decoded

from benchmarks.decode_cases import LAYERS, Block, Torch, largest_error
from benchmarks.report import Benchmark, Report, table
from cola_train import hardware
from cola_train.errors import EXIT_DONE, EXIT_FAULT, UserError

DEVICE = "cuda"
DTYPE = torch.bfloat16
OTHERS = (torch.float16, torch.float32)  # checked for errors alone, at the first model
ENOUGH = 160e6  # bytes of weights in a graph: more than twice any GPU's L2 cache
REPLAYS = 10  # of a round
Task = tuple[Shape, torch.dtype]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", choices=DECODED, default=list(DECODED))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4], help="(1 2 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")


def run(options: argparse.Namespace) -> Report:
    """Time every layer, in rounds of both in turn; what fails costs the others nothing.

    Raises:
        UserError: the kernels cannot run here, or an option is wrong.
    """
    check(options)
    import triton

    start = time.perf_counter()
    shapes = {
        (name, n): replace(DECODED[name], n=n) for name in options.model for n in options.rows
    }
    compile_ahead(
        [
            *((shape, DTYPE) for shape in shapes.values()),
            *((shape, dtype) for shape in others(options) for dtype in OTHERS),
        ]
    )
    say(f"compiled ({time.perf_counter() - start:.0f} s)")
    errors = {
        f"{shape.n} rows, {dtype}".replace("torch.", ""): guarded(errors_of, shape, dtype)
        for shape in others(options)
        for dtype in OTHERS
    }
    results = {}
    for (name, n), shape in shapes.items():
        results[f"{name}, {n}"] = guarded(measure, shape, options)
        say(f"{name}, {n} rows ({time.perf_counter() - start:.0f} s)")
        if "block" in (of := results[f"{name}, {n}"]):  # said at once: what follows may hang
            say(table(HEADERS, [*rows_of(f"{name}, {n}", of)]))
    good = all(of["good"] for of in [*errors.values(), *results.values()])
    figures = {
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "dtype": str(DTYPE).removeprefix("torch."),
        "bandwidth": bandwidth(),
        "seconds": time.perf_counter() - start,
        "errors_in_other_dtypes": errors,
        "layers": results,
    }
    return Report(figures, text_of(figures), EXIT_DONE if good else EXIT_FAULT)


def check(options: argparse.Namespace) -> None:
    problems = []
    if (reason := unavailable(DEVICE)) is not None:
        problems.append(f"decode_kernels: needs an NVIDIA GPU and Triton: {reason}")
    else:
        from cola_kernels.decode_launch import ROWS

        if any(not 1 <= n <= ROWS for n in options.rows):
            problems.append(f"--rows: must be 1 to {ROWS}, got {' '.join(map(str, options.rows))}")
    if options.overrides:
        problems.append(f"{options.overrides[0]}: this benchmark takes no config options")
    if options.rounds < 1:
        problems.append(f"--rounds: must be at least 1, got {options.rounds}")
    if problems:
        raise UserError(*problems)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def others(options: argparse.Namespace) -> list[Shape]:
    """Of the kernels for one row and for several."""
    return [replace(DECODED[options.model[0]], n=n) for n in (1, 3)]


def bandwidth() -> float:
    """Bytes a second of this GPU's data sheet, or an H100's."""
    gpu = hardware.gpu_named(hardware.device_name(torch.device(DEVICE)))
    return gpu.memory_bandwidth if gpu else BANDWIDTHS["H100"]


def compile_ahead(tasks: Sequence[Task]) -> None:
    """Into Triton's cache on disk, by as many processes as there are cores: one at a time would
    take minutes."""
    if DEVICE == "cpu":
        return
    workers = min(len(tasks), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for of in [pool.submit(compile_one, task) for task in tasks]:
            of.exception()  # it will show where the kernel is launched


def compile_one(task: Task) -> None:
    from cola_kernels.ops import decode
    from cola_kernels.recording import warm_up

    shape, dtype = task
    weights = Block(shape, dtype, "meta")
    x = torch.empty(shape.n, shape.d, dtype=dtype, device="meta")

    def block() -> None:
        for name in LAYERS:
            LAYERS[name](decode, weights, x)

    warm_up(block, torch.device(DEVICE))


def guarded(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return function(*arguments)
    except Exception as error:  # time on a GPU is dear: the others are still to be measured
        traceback.print_exc()
        return {"good": False, "failed": f"{type(error).__name__}: {error}"}


def implementations() -> dict[str, Any]:
    from cola_kernels.ops import decode

    return {"torch": Torch(), "ours": decode}


def errors_of(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """The largest error of our layers over what is allowed; at most 1 is right."""
    found = largest_error(implementations()["ours"], shape, dtype, DEVICE)
    return {"good": found <= 1, "of_allowed": found}


def measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Errors and times of every layer at one shape."""
    figures: dict[str, Any] = errors_of(shape, DTYPE)
    costs = decoded(shape)
    costs["block"] = replace(costs["qkv"], **{
        name: sum(getattr(cost, name) for cost in costs.values()) for name in ("flops", "bytes")
    })  # fmt: skip
    x = torch.randn(shape.n, shape.d, device=DEVICE).to(DTYPE)
    for layer, cost in costs.items():
        copies = min(256, max(2, round(ENOUGH / cost.bytes)))
        weights = [Block(shape, DTYPE, DEVICE, layer) for _ in range(copies)]
        seconds = layer_seconds(layer, weights, x, options.rounds)
        median = {whose: statistics.median(of) for whose, of in seconds.items()}
        floor = cost.bytes / bandwidth()
        figures[layer] = {
            "copies": copies,
            "least_bytes": cost.bytes,
            "floor_seconds": floor,
            "seconds": seconds,
            "seconds_median": median,
            "of_floor": floor / median["ours"],
            "faster_than_torch": median["torch"] / median["ours"],
        }
    return figures


def layer_seconds(
    layer: str, weights: Sequence[Block], x: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Of one layer, in each round: a graph replayed has each copy of it once."""
    function = LAYERS[layer]

    def step(ops: Any) -> None:
        of = x
        for copy in weights:
            out = function(ops, copy, of)
            of = out if layer == "block" else x

    graphs = {
        whose: captured(functools.partial(step, ops)) for whose, ops in implementations().items()
    }
    found: dict[str, list[float]] = {whose: [] for whose in graphs}
    for _ in range(rounds):
        for whose, replay in graphs.items():
            found[whose].append(replayed_seconds(replay) / (REPLAYS * len(weights)))
    return found


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph's replay."""
    if DEVICE == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        step()
    graph.replay()
    return graph.replay


def replayed_seconds(replay: Callable[[], None]) -> float:
    if DEVICE == "cpu":
        start = time.perf_counter()
        for _ in range(REPLAYS):
            replay()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()
    before.record()
    for _ in range(REPLAYS):
        replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def text_of(figures: dict[str, Any]) -> str:
    lines = [f"µs of a layer in a CUDA graph, {figures['dtype']}; floors: the weights' bytes at "
             f"{figures['bandwidth'] / 1e12:g} TB/s"]  # fmt: skip
    rows = [row for name, of in figures["layers"].items() if "block" in of
            for row in rows_of(name, of)]  # fmt: skip
    lines.append(table(HEADERS, rows))
    checked = {**figures["errors_in_other_dtypes"], **figures["layers"]}
    worst = [of["of_allowed"] for of in checked.values() if "of_allowed" in of]
    if worst:
        lines.append(f"The largest error is {max(worst):.2f} of what is allowed.")
    for name, of in checked.items():
        if not of["good"]:
            lines.append(f"WRONG: {name}: {of.get('failed') or of['of_allowed']}")
    lines.append(f"{figures['seconds']:.0f} s in all.")
    return "\n".join(lines)


HEADERS = ["layer", "floor µs", "torch µs", "ours µs", "of floor", "over torch"]


def rows_of(name: str, of: dict[str, Any]) -> Iterator[list[str]]:
    for layer in LAYERS:
        median = of[layer]["seconds_median"]
        yield [
            f"{name}: {layer}",
            f"{of[layer]['floor_seconds'] * 1e6:.1f}",
            *(f"{median[whose] * 1e6:.1f}" for whose in ("torch", "ours")),
            f"{of[layer]['of_floor']:.0%}",
            f"{of[layer]['faster_than_torch']:.2f}x",
        ]


BENCHMARK = Benchmark(
    "decode kernels of a few rows beside torch's, in CUDA graphs, and their floors (GPU)",
    add_options,
    run,
)
