"""The step-time model's constants, by least squares from what the other parts have timed, and from
Python's time on this host. `cola-plan constants=FILE` takes them.

Kernels are timed one by one, which a GPU at its power limit does not keep up through a step: the
matmuls' peak is at last that of a whole step of full rank, which is matmuls for the most part.

Most are shares of the data sheet's numbers: a GPU that is not in cola_train/gpus.py has none.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from benchmarks import python_time
from benchmarks.gpu.correctness import guarded
from benchmarks.gpu.graphs import CONTENDERS, graph_config
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.policies import modelled_step
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import UNPADDED, config_of
from cola_train import distributed, hardware
from cola_train.config.schema import Config
from cola_train.gpus import Gpu
from cola_train.methods.launches import FusedGemm, Gemm, Launch, Work
from cola_train.planning.constants import StepConstants
from cola_train.planning.launch_time import Chip

BF16 = 2  # bytes
US = 1e-6
PYTHON_CASES = [  # the compiled ones take longer, and come last
    (method, kernels, mode)
    for mode in python_time.MODES
    for method, kernels in (("full", "torch"), ("cola", "torch"), ("cola", "triton"))
]
FUSED = {  # Triton's kernels by name in floors.table: products a tile, elements moved over n F
    "gated_backward": (1, 4),
    "gated_recompute": (3, 3),
}
Misfit = Callable[[StepConstants], float]  # sum of squares of log(modelled / measured)
LENGTHS = (256, 1024, 4096)  # of the sequences whose attention is a constant


def measure(given: Given, record: Record) -> None:
    sizes = given.sizes
    device = distributed.device()
    gpu = given.gpu(device)
    if gpu is None:
        name = hardware.device_name(device)
        record("note", f"{name} is not in cola_train/gpus.py: no constants; add its data sheet")
        return
    ops = given.earlier.get("ops", {})
    single = [*ops.get("single", []), *fused_samples(sizes, ops)]
    constants, misfits = fit_kernels(gpu, single, full_rank_step(sizes, given.earlier))
    record("misfit", misfits)
    record("constants", asdict(constants))
    python: dict[str, Figures] = {}
    for case in PYTHON_CASES[: 1 if sizes.dry_run else None]:
        python[", ".join(case)] = guarded(python_seconds, sizes, *case)
        record("python", python)
        record("constants", asdict(fit_host(constants, sizes, python)))


def python_seconds(sizes: Sizes, method: str, kernels: str, mode: str) -> Figures:
    """Seconds of the main thread by part: least of a few steps whose kernels are of no size."""
    case = [method, kernels, str(mode == "compiled"), str(sizes.python_layers), "fp32"]
    steps = python_time.alternate({"here": python_time.HERE}, case, sizes.python_repeats)["here"]
    return {part: min(step[part] for step in steps) for part in python_time.PARTS}


# --- the GPU's ------------------------------------------------------------------------------


def fit_kernels(
    gpu: Gpu, single: Sequence[dict[str, Any]], whole: tuple[Config, float] | None = None
) -> tuple[StepConstants, dict[str, float]]:
    """The constants of a GPU's kernels, those that nothing was timed for as they were; and how far
    the model is from the timings, as a typical factor less one.

    single: kernels as the part `ops` records them, with seconds.
    whole: a step, and its seconds.
    """
    constants = StepConstants()
    of: dict[str, list[dict[str, Any]]] = {}
    for sample in single:
        of.setdefault(sample["kind"], []).append(sample)
    for kind, name in (("copy", "gemm_bandwidth"), ("pass", "pass_bandwidth")):
        for sample in of.get(kind, []):
            share = sample["bytes"] / sample["seconds"] / gpu.memory_bandwidth
            constants = replace(constants, **{name: as_share(share)})
    for sample in of.get("chain", []):
        each = sample["seconds"] / sample["kernels"]
        constants = replace(constants, launch_us=each / US)
    gemms = [(gemm(*s["shape"]), s["seconds"]) for s in of.get("gemm", []) if not s.get("odd")]
    fused = [(fused_gemm(s), s["seconds"]) for s in of.get("fused", [])]
    constants = fit_odd(constants, of.get("gemm", []))
    constants = fit_attention(constants, gpu, of.get("attention", []))
    misfits = {}
    if gemms:
        constants = fit(constants, ("gemm_peak", "gemm_fill_us"), misfit_of(gpu, gemms))
        misfits["matmuls"] = typical(misfit_of(gpu, gemms)(constants), len(gemms))
    if whole:
        constants = fit(constants, ("gemm_peak",), misfit_of_step(gpu, *whole))
    if fused:  # their epilogue's cost is over cuBLAS's time by the peak that is the last
        names = ("fused_peak", "fused_fill_us", "fused_epilogue")
        constants = fit(constants, names, misfit_of(gpu, fused))
        misfits["fused"] = typical(misfit_of(gpu, fused)(constants), len(fused))
    return constants, misfits


def full_rank_step(sizes: Sizes, earlier: dict[str, Figures]) -> tuple[Config, float] | None:
    """The largest that was timed, and its seconds: as a graph, or else compiled."""
    for part, name in (("graphs", "full"), ("steps", "full, compiled")):
        timed = {
            int(where.split(" x ")[0]): of[name]["step_seconds_median"]
            for where, of in earlier.get(part, {}).items()
            if not where.endswith(UNPADDED) and "step_seconds_median" in of.get(name, {})
        }
        if timed:
            return graph_config(sizes, max(timed), *CONTENDERS["full"]), timed[max(timed)]
    return None


def fused_samples(sizes: Sizes, ops: Figures) -> Iterator[dict[str, Any]]:
    """Triton's kernels among the ops that were timed, as single kernels."""
    for (model, shape), (name, (products, moved)) in product(sizes.timed.items(), FUSED.items()):
        timed = ops.get(f"{model}: {name}", {})
        if "seconds_median" in timed:
            yield {
                "kind": "fused", "shape": (shape.n, shape.d_ff, shape.r), "products": products,
                "moved": moved, "seconds": timed["seconds_median"]["fused"],
            }  # fmt: skip


def gemm(rows: int, columns: int, depth: int) -> Gemm:
    return Gemm(rows, columns, depth, (depth, depth, columns))


def fused_gemm(sample: dict[str, Any]) -> FusedGemm:
    rows, columns, depth = sample["shape"]
    moved = sample["moved"] * rows * columns
    return FusedGemm(rows, columns, depth, products=sample["products"], moved=moved)


def as_share(value: float) -> float:
    return min(1.0, max(1e-6, value))


def misfit_of(gpu: Gpu, samples: Sequence[tuple[Launch, float]]) -> Misfit:
    def misfit(constants: StepConstants) -> float:
        chip = Chip(gpu, constants, BF16)
        return sum(math.log(chip.seconds(launch) / seconds) ** 2 for launch, seconds in samples)

    return misfit


def misfit_of_step(gpu: Gpu, config: Config, seconds: float) -> Misfit:
    def misfit(constants: StepConstants) -> float:
        return math.log(modelled_step(config, gpu, constants) / seconds) ** 2

    return misfit


def typical(misfit: float, samples: int) -> float:
    """As a factor, less one."""
    return math.exp((misfit / samples) ** 0.5) - 1


def fit(constants: StepConstants, names: Sequence[str], misfit: Misfit) -> StepConstants:
    """Least squares by a pattern search: steps along each constant, halved where none helps."""
    best, step = misfit(constants), 0.5
    while step > 1e-3:
        before = best
        for name in names:
            for factor in (1 + step, 1 / (1 + step)):
                trial = replace(constants, **{name: within(name, getattr(constants, name), factor)})
                if (found := misfit(trial)) < best:
                    best, constants = found, trial
        if best == before:
            step /= 2
    return constants


def within(name: str, value: float, factor: float) -> float:
    """A constant times a factor, within its bounds."""
    if name.endswith("_us"):
        return value * factor
    return max(1.0, value * factor) if name == "fused_epilogue" else as_share(value * factor)


def fit_odd(constants: StepConstants, gemms: Sequence[dict[str, Any]]) -> StepConstants:
    odd = [s["seconds"] for s in gemms if s.get("odd") is True]
    aligned = [s["seconds"] for s in gemms if s.get("odd") is False]
    if not odd or not aligned:
        return constants
    return replace(constants, odd_rows=max(1.0, odd[0] / aligned[0]))


def fit_attention(
    constants: StepConstants, gpu: Gpu, samples: Sequence[dict[str, Any]]
) -> StepConstants:
    shares: dict[tuple[int, bool], float] = {}
    for s in samples:
        B, H, T, K = s["shape"]
        backward = s.get("backward", False)
        flops = (5.0 if backward else 2.0) * T * B * T * H * K  # half of the square
        shares[T, backward] = flops / s["seconds"] / gpu.bf16_flops
    for T in LENGTHS:
        if (T, False) in shares:
            faster = constants.attention_hopper if T >= 1024 and gpu.capability == (9, 0) else 1.0
            share = as_share(shares[T, False] / faster)
            constants = replace(constants, **{f"attention_{T}": share})
    ratios = [shares[T, True] / shares[T, False] for T, back in shares if back]
    if ratios:
        constants = replace(constants, attention_backward=as_share(statistics.median(ratios)))
    return constants


# --- the host's -----------------------------------------------------------------------------


def fit_host(constants: StepConstants, sizes: Sizes, cases: dict[str, Figures]) -> StepConstants:
    """From the cases that were timed, by the launches that the planner lists. On one process no
    engine has hooks, so theirs stay as they were."""
    timed = [case for case in PYTHON_CASES if "rest" in cases.get(", ".join(case), {})]
    seconds = {case: cases[", ".join(case)] for case in timed}
    for mode in python_time.MODES:
        samples = []
        for method, kernels, its_mode in timed:
            if kernels == "torch" and its_mode == mode:
                usual, _ = launches(sizes, method, kernels, mode)
                of = seconds[method, kernels, mode]
                samples.append((usual, of["forward"] + of["backward"]))
        if samples:
            each = sum(n * t for n, t in samples) / sum(n * n for n, _ in samples)
            name = "compiled_launch_us" if mode == "compiled" else "eager_launch_us"
            constants = replace(constants, **{name: each / US})
    found = []
    for method, kernels, mode in timed:
        usual, fused = launches(sizes, method, kernels, mode)
        if fused:
            of = seconds[method, kernels, mode]
            own = getattr(constants, f"{mode}_launch_us") * US * usual
            found.append(max(0.0, of["forward"] + of["backward"] - own) / fused / US)
    if found:
        constants = replace(constants, fused_launch_us=statistics.median(found))
    if seconds:
        rest = statistics.median(of["rest"] for of in seconds.values())
        constants = replace(constants, optimizer_us=rest / US)
    return constants


def launches(sizes: Sizes, method: str, kernels: str, mode: str) -> tuple[int, int]:
    """Kernels of all blocks, forward and backward: torch's, and ours on Triton."""
    compiled = mode == "compiled"
    config = config_of(sizes, method, kernels, compiled, 1)
    work = Work(16, 16, "none", kernels == "triton", compiled)
    block = list(config.method.block_launches(config.model, work))
    fused = sum(isinstance(launch, FusedGemm) for launch in block)
    return sizes.python_layers * (len(block) - fused), sizes.python_layers * fused


def lines(figures: Figures) -> list[str]:
    said = [figures["note"]] if "note" in figures else []
    if python := figures.get("python"):
        each = (f"{k} {1e3 * sum(f.values()):.1f}" if "rest" in f else f"{k}: {f['error']}"
                for k, f in python.items())  # fmt: skip
        said.append("Python's time of a step whose kernels are of no size, on this host, ms: "
                    + "; ".join(each) + ".")  # fmt: skip
    if "constants" in figures:
        off = ", ".join(f"{name} {of:.0%}" for name, of in figures["misfit"].items())
        said += ["", f"The model is off by {off or 'an unknown part'}.", "", "```text"]
        usual = asdict(StepConstants())
        said += [f"{name:20} {value:10.4g}   (was {usual[name]:g})"
                 for name, value in figures["constants"].items()]  # fmt: skip
        said.append("```")
    return said
