"""Each op beside its reference, torch.compile of that, and its floor; and the single kernels that
constants are fitted to. Times are the GPU's own, with a cold cache (cola_kernels.tools.timing)."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cola_kernels import unavailable
from cola_kernels.tools.timing import Subject
from torch import Tensor

from benchmarks import kernels
from benchmarks.gpu.correctness import guarded
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.sizes import Sizes
from cola_train import distributed

ATTENTION = ((64, 256), (16, 1024), (4, 4096))  # sequences, tokens of each
CHAIN = 100  # kernels one after the other, to see what lies between two


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.device()
    if sizes.dry_run:
        stand_in()
    record("ceilings", kernels.ceilings(sizes.rounds))
    record("single", [
        {**what, "seconds": seconds(subject, sizes.rounds)}
        for what, subject in single_kernels(sizes, device)
    ])  # fmt: skip
    if (reason := unavailable(device)) is not None:
        record("note", f"Triton's kernels cannot run here: {reason}")
        return
    from benchmarks.kernels_cases import cases

    for model, shape in sizes.timed.items():
        for case in cases(shape, kernels.DTYPE, device):
            figures = guarded(kernels.measure, case, sizes.rounds)
            record(f"{model}: {case.name}", {"good": figures.get("correct", False), **figures})


def seconds(subject: Subject, rounds: int) -> float:
    return statistics.median(kernels.gpu_seconds({"it": subject}, rounds)["it"])


def single_kernels(sizes: Sizes, device: torch.device) -> Iterator[tuple[dict[str, Any], Subject]]:
    """What each is, as `fit` reads it, and the kernel."""
    dtype = kernels.DTYPE

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    for rows, columns, depth in sizes.gemms:
        yield gemm(new(rows, depth), new(columns, depth))
    rows, columns, depth = sizes.gemms[-1]
    for width in (depth, depth - 3):  # which leaves rows that are not aligned
        what, subject = gemm(new(rows, width), new(columns, width))
        yield what | {"odd": width != depth}, subject
    x = new(kernels.COPY_SIZE)
    y = torch.empty_like(x)
    yield {"kind": "pass", "bytes": 3 * x.nbytes}, ready(lambda: torch.mul(x, y, out=y))
    yield {"kind": "copy", "bytes": 2 * x.nbytes}, ready(lambda: y.copy_(x))
    small = new(1024)

    def chain() -> None:
        for _ in range(CHAIN):
            small.neg_()

    yield {"kind": "chain", "kernels": CHAIN}, ready(chain)
    for B, T in ((2, 16),) if sizes.dry_run else ATTENTION:
        q, k, v = (new(B, 32, T, 64).requires_grad_() for _ in range(3))
        what = {"kind": "attention", "shape": (B, 32, T, 64)}
        yield what, ready(partial(F.scaled_dot_product_attention, q, k, v, is_causal=True))
        yield what | {"backward": True}, partial(attention_backward, q, k, v)


def attention_backward(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return partial(torch.autograd.grad, out, (q, k, v), torch.ones_like(out))


def gemm(a: Tensor, b: Tensor) -> tuple[dict[str, Any], Subject]:
    """a (rows, depth) times b (columns, depth) transposed."""
    return {"kind": "gemm", "shape": (len(a), *b.shape)}, ready(lambda: a @ b.mT)


def ready(function: Callable[[], object]) -> Subject:
    return lambda: function


def stand_in() -> None:
    """In a dry run: the CPU and its clock, at sizes that take no time."""
    kernels.DEVICE, kernels.DTYPE = "cpu", torch.float32
    kernels.PRODUCT_SIZE, kernels.COPY_SIZE = 64, 1024
    kernels.gpu_seconds = cpu_seconds


def cpu_seconds(
    subjects: Mapping[str, Subject], rounds: int, warmup: int = 0
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, prepare in subjects.items():
            timed = prepare()
            start = time.perf_counter()
            timed()
            found[name].append(time.perf_counter() - start)
    return found


def lines(figures: Figures) -> list[str]:
    said = []
    if "ceilings" in figures:
        of = figures["ceilings"]
        said.append(
            f"A large product reaches {of['product_flops_per_second'] / 1e12:,.0f} TFLOP/s, a "
            f"large copy {of['copy_bytes_per_second'] / 1e12:.2f} TB/s; the floors are those of an "
            f"H100 ({kernels.FLOPS_PER_SECOND / 1e12:.0f} and {kernels.BYTES_PER_SECOND / 1e12:g})."
        )
    if "note" in figures:
        said.append(figures["note"])
    ops = {key: of for key, of in figures.items() if ": " in key}
    if ops:
        said += ["", "| op | fused µs | floor µs | of floor | over compiled | over plain |  |",
                 "|---|---|---|---|---|---|---|"]  # fmt: skip
    for key, of in ops.items():
        if "error" in of and "seconds_median" not in of:
            said.append(f"| {key} | | | | | | **failed**: {of['error']} |")
            continue
        faster = of["faster_than"]
        word = "reached" if of["reached"] else ""
        said.append(
            f"| {key} | {of['seconds_median']['fused'] * 1e6:,.0f} | "
            f"{of['floor_seconds'] * 1e6:,.0f} | {of['of_floor']:.0%} | {faster['compiled']:.2f} | "
            f"{faster['reference']:.2f} | {word if of['good'] else '**wrong**'} |"
        )
    return said
