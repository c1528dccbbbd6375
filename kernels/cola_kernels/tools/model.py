"""How long each Triton kernel should take on an H100, beside torch's kernels for the same: a model.

Nothing here is measured; on an H200 torch's kernels were faster than this (docs/benchmarks.md). An
op stays if its gain at 1b is at least 1.1. The table in docs/kernels.md is `python -m
cola_kernels.tools.model`.

The terms, in microseconds. A wave is one tile on each multiprocessor.
    cuBLAS: waves x (steps of 64 along K x a step + fill and epilogue) + a launch; the best of five
        tiles. Fitted to published bf16 figures: 1024^3 177, 2048^3 677, 4096^3 789, 8192^3 798
        TFLOP/s (zzc0721/torch-performance-test-data#79), 65536x1024x1024 583
        (facebookexperimental/triton#1038).
    A pass of torch.compile: bytes at what elementwise kernels reach, and a ramp.
    Ours: waves x (steps x a step, bound by L2, + epilogue), and what epilogues read. Between two
        published figures of persistent kernels: 564 TFLOP/s at 65536x1024x1024 (the same issue),
        0.92 of cuBLAS at 8192x8192x512 (triton#5726).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cola_kernels.tiles import TABLE, TYPICAL, Config
from cola_kernels.tools.floors import BYTES_PER_SECOND, SHAPES, Cost, Shape, table

WORTH_IT = 1.1  # the gain below which an op goes

LAUNCH = 2.0  # from one kernel's last block to the next one's first
PASS_BYTES = 2.8e12  # a second, of elementwise kernels: of the 3.0 that a large copy reaches
RAMP = 3.0  # of a kernel bound by memory
DEPTH = 64  # of a step along K
# cuBLAS: rows and columns of a tile, a step, fill and epilogue
CUBLAS = (
    (128, 256, 0.64, 4.0),
    (256, 128, 0.64, 4.0),
    (128, 128, 0.42, 3.0),
    (64, 256, 0.42, 3.0),
    (64, 128, 0.30, 2.5),
)
L2_BYTES = 7.7e12  # a second, of all multiprocessors: what the figures of Triton's kernels imply
FILL = 1.2  # of a loop's pipeline, where no other program's work hides it
EPILOGUE = 3.0  # of a persistent program; its stores are under way in the next tile's loop
HIDDEN = 0.75  # of the shorter of loops and epilogues, with two programs on a multiprocessor


@dataclass(frozen=True)
class Modelled:
    """Seconds of one use of an op: the floor, our kernel, and torch's kernels for the same."""

    floor: float
    ours: float
    torch: float

    @property
    def gain(self) -> float:
        return self.torch / self.ours

    def __add__(self, other: "Modelled") -> "Modelled":
        return Modelled(self.floor + other.floor, self.ours + other.ours, self.torch + other.torch)


def cublas(M: int, N: int, K: int) -> float:
    """Microseconds of a bf16 product (M, K) x (K, N)."""
    processors = TYPICAL["sm_90"].processors
    compute = min(
        math.ceil(math.ceil(M / m) * math.ceil(N / n) / processors)
        * (math.ceil(K / DEPTH) * step + overhead)
        for m, n, step, overhead in CUBLAS
    )
    return max(compute + LAUNCH, memory(M * K + K * N + M * N))


def memory(elements: int) -> float:
    """Microseconds to read or write 16-bit elements, by a kernel that does little else."""
    return 2 * elements / BYTES_PER_SECOND * 1e6 + RAMP


def compiled_pass(elements: int) -> float:
    """Microseconds of an elementwise kernel that reads and writes so many 16-bit elements."""
    return 2 * elements / PASS_BYTES * 1e6 + LAUNCH


def ours(
    config: Config, M: int, N: int, depths: tuple[tuple[int, int], ...], elements: int, loads: int
) -> float:
    """Microseconds of a persistent kernel.

    Args:
        depths: of each of its loops, K and how many products run in it.
        elements: read and written at least, in all.
        loads: of them, what epilogues read and write, if they read: neither happens during the
            tile's own loop.
    """
    processors = TYPICAL["sm_90"].processors
    waves = math.ceil(config.tiles(M, N) / processors)
    step_bytes = 2 * (config.block_m + config.block_n) * DEPTH
    step = step_bytes * processors / L2_BYTES * 1e6
    loops = sum(math.ceil(K / DEPTH) * products * step for K, products in depths)
    loops += FILL * (len(depths) - 1)  # the first is filled during the tile before
    compute = waves * loops
    epilogues = waves * EPILOGUE + 2 * loads / BYTES_PER_SECOND * 1e6
    if config.programs > 1:
        total = max(compute, epilogues) + (1 - HIDDEN) * min(compute, epilogues)
    else:
        total = compute + epilogues
    return max(total + LAUNCH, memory(elements))


def kernels(shape: Shape) -> dict[str, Modelled]:
    """Every use of a Triton kernel in a block of the model, by its name in `floors.table`."""
    shape = replace(shape, d_ff=math.ceil(shape.d_ff / 16) * 16)
    n, d, F, r = shape.n, shape.d, shape.d_ff, shape.r
    costs = table(shape)
    rows = {kernel: TABLE[kernel]["sm_90"]["wide"] for kernel in TABLE}
    gate_and_up = 2 * cublas(n, F, r)

    def entry(name: str, other: float, N: int, depths: tuple[tuple[int, int], ...],
              loads: int = 0) -> tuple[str, Modelled]:  # fmt: skip
        cost: Cost = costs[name]
        kernel = name.split(",")[0]
        time = ours(rows[kernel], n, N, depths, cost.bytes // 2, loads)
        return name, Modelled(cost.floor_seconds, time * 1e-6, other * 1e-6)

    def entries() -> Iterator[tuple[str, Modelled]]:
        yield entry("up_add", cublas(n, d, r) + compiled_pass(3 * n * d), d, ((r, 1),), 2 * n * d)
        forward = gate_and_up + compiled_pass(3 * n * F)
        yield entry("gated_up, keep", forward, F, ((r, 2),))
        dp = cublas(n, F, r)
        backward = dp + compiled_pass(5 * n * F)
        yield entry("gated_backward", backward, F, ((r, 1),), 4 * n * F)
        yield entry("gated_up", forward, F, ((r, 2),))
        again = gate_and_up + dp + compiled_pass(6 * n * F)
        yield entry("gated_recompute", again, F, ((r, 2), (r, 1)))

    return dict(entries())


def ops(shape: Shape) -> dict[str, Modelled]:
    """Every op: of its kernels, forward and backward, what is not a plain product."""
    of = kernels(shape)
    return {
        "up_add": of["up_add"],
        "gated_down_wide": of["gated_up, keep"] + of["gated_backward"],
        "gated_down": of["gated_up"] + of["gated_recompute"],
    }


def main() -> None:
    for title, entries in (("kernel", kernels), ("op, forward + backward", ops)):
        print(f"| {title} | floor µs | model µs | torch's kernels µs, model | gain |")
        print("|---|---|---|---|---|")
        of = [entries(shape) for shape in SHAPES.values()]
        for name in of[0]:
            cells = [
                " / ".join(f"{cell(models[name]):.{digits}f}" for models in of)
                for cell, digits in (
                    (lambda m: m.floor * 1e6, 0),
                    (lambda m: m.ours * 1e6, 0),
                    (lambda m: m.torch * 1e6, 0),
                    (lambda m: m.gain, 2),
                )
            ]
            print(f"| `{name}` | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
