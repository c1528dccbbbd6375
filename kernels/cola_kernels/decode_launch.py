"""How the kernels of `decode` are launched: tiles, grids, and phases together or one by one.

Nothing here has been timed on a GPU yet.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from cola_kernels.decode import encode_kernel, mlp_kernel
from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import Config, Target

ROWS = 16  # at most: the least that tensor cores take
WAYS = ("apart", "chained", "together")  # what lies between phases: see `decode`
# of one row, and of more. Stages: the loads of so many steps along K, but one, are under way.
# Programs: so many fit on a multiprocessor, and are there `together`.
ONE = Config(block_m=1, block_n=1, block_k=1, warps=4, stages=4, programs=3)
FEW = Config(block_m=ROWS, block_n=1, block_k=1, warps=4, stages=4, programs=2)
MOST = {"sm_80": 2, "sm_86": 1, "sm_90": 3}  # programs for which there is shared memory


@dataclass(frozen=True)
class Blocks:
    """Rows of a weight, and columns of them at a time, that a program takes."""

    n: int
    k: int


def blocks(rows: int, phase: "Phase", dtype: torch.dtype, target: Target) -> Blocks:
    """So many bytes under way as a program can hold, but so many programs that each multiprocessor
    has one or more.

    What a GPU reads in the time of one access, about a microsecond, must be under way to reach its
    full speed: 25 to 40 KB a multiprocessor on Hopper.
    """
    wide = dtype != torch.float32
    size = 4096 if wide else 2048 if rows == 1 else 512  # elements at a time
    longest, shortest, least = (1024, 1, 1) if rows == 1 else (256 if wide else 64, 16, 4)
    n = 2 * max(1, size // min(triton.next_power_of_2(phase.K), longest))
    rows_in_all = phase.weights * phase.N
    n = min(n, 32)
    if rows_in_all < 4 * n * target.processors:
        n //= 2
    while n > least and -(-rows_in_all // n) < target.processors:
        n //= 2
    k = max(shortest, min(triton.next_power_of_2(phase.K), longest, size // n))
    return Blocks(n, k // 2 if phase.pair and rows > 1 and k > 16 else k)


@dataclass(frozen=True)
class Phase:
    """Products with so many weights (N, K); of a `pair` one scales the other."""

    N: int
    K: int
    weights: int = 1
    pair: bool = False


def launches(
    kernel: object,
    phases: list[Phase],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    wanted: range,
    way: str,
    target: Target,
) -> list[Launch]:
    """Of the wanted phases; the first tensor is one with the rows.

    way: of WAYS. The interpreter runs one program after the other, so that a barrier would never
        end, and no GPU before sm_90 has dependent launches: there each has its own launch.
    """
    rows, dtype = len(tensors[0]), tensors[0].dtype
    by = [blocks(rows, of, dtype, target) for of in phases]
    tiles = [of.weights * -(-of.N // b.n) for of, b in zip(phases, by, strict=True)]
    sizes = [size for b in by for size in (b.n, b.k)]
    together = way == "together" and len(wanted) > 1 and not interpreting()
    chained = way == "chained" and target.architecture == "sm_90" and not interpreting()
    config = ONE if rows == 1 else FEW
    config = replace(config, programs=min(config.programs, MOST[target.architecture]))
    if together:
        at_once = target.processors * config.programs
        grids = {(wanted.start, wanted.stop): min(at_once, max(tiles[i] for i in wanted))}
    else:
        grids = {(i, i + 1): tiles[i] for i in wanted}
    block_m = 1 if rows == 1 else 8 if rows <= 8 else ROWS
    return [
        Launch(
            kernel=kernel,
            grid=(grid,),
            tensors=tensors,
            numbers=(rows, *numbers, first, end, chained, block_m, *sizes, config.stages),
            config=config,
            cooperative=together,
            dependent=chained,
        )
        for (first, end), grid in grids.items()
    ]


def encode_launches(
    x: Tensor | None,
    a: list[Tensor],
    norm: Tensor | None,
    eps: float,
    z: Tensor,
    b: list[Tensor],
    residual: Tensor | None,
    y: Tensor | None,
    activation: bool,
    arrived: Tensor,
    way: str,
    target: Target,
) -> list[Launch]:
    """y (M, P d_1) = s(norm(x) A^T) B^T + residual, of x (M, d), P <= 3 a (r, d) and b (d_1, r);
    z (M, P r) lies between. Without x and a z is given, without b and y z is what is wanted.

    arrived: the counter of the grid's barrier, (1,), int32, which starts as 0.
    """
    weights = len(a or b)
    d, r = 1 if x is None else x.shape[1], z.shape[1] // weights
    d_out = 1 if y is None else y.shape[1] // weights
    given = (x, *three(a), norm, z, *three(b), residual, y, arrived)
    return launches(
        encode_kernel,
        [Phase(r, d, weights), Phase(d_out, r, weights)],
        tuple(z if tensor is None else tensor for tensor in given),
        (
            d,
            r,
            d_out,
            weights,
            norm is not None,
            eps,
            residual is not None,
            activation and not a,
            activation and bool(a and b),
        ),
        range(0 if a else 1, 2 if b else 1),
        way,
        target,
    )


def mlp_launches(
    x: Tensor | None,
    a: list[Tensor],
    norm: Tensor | None,
    eps: float,
    z: Tensor,
    b: list[Tensor],
    p: Tensor,
    down_a: Tensor,
    z_down: Tensor,
    down_b: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    activation: bool,
    gate_silu: bool,
    arrived: Tensor,
    way: str,
    target: Target,
) -> list[Launch]:
    """y (M, d_1) of x (M, d): a and b are gate's and up's, (r, d) and (F, r); down_a is (r_d, F)
    and down_b (d_1, r_d). z (M, 2 r), p (M, F) and z_down (M, r_d) lie between. Without x and a z
    is given, without down_b and y z_down is what is wanted.

    arrived: as above.
    """
    d, r, F = 1 if x is None else x.shape[1], z.shape[1] // 2, p.shape[1]
    r_down, d_out = z_down.shape[1], 1 if y is None else y.shape[1]
    given = (x, *three(a)[:2], norm, z, *b, p, down_a, z_down, down_b, residual, y, arrived)
    return launches(
        mlp_kernel,
        [Phase(r, d, 2), Phase(F, r, pair=True), Phase(r_down, F), Phase(d_out, r_down)],
        tuple(z if tensor is None else tensor for tensor in given),
        (d, r, F, r_down, d_out, gate_silu, norm is not None, eps, residual is not None,
         activation and not a, activation and bool(a)),
        range(0 if a else 1, 4 if down_b is not None else 3),
        way,
        target,
    )  # fmt: skip


def three(weights: list[Tensor]) -> list[Tensor | None]:
    """Padded with None."""
    return [*weights, *[None] * (3 - len(weights))]
