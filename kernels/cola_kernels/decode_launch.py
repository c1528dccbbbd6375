"""How the kernels of `decode` are launched: which rows, on which GPUs how, tiles and grids.

The rule is what an H200 measured (docs/kernels.md). Tiles are as they were first thought out: none
have been tuned there.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from cola_kernels.decode import gate_up_kernel, project_kernel
from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import Config, Target

ROWS = 4  # at most; of more, torch's kernels take less time
SMALL = 2**20  # elements of a weight: with as many or more that holds for 2 rows already
# of one row, and of more. Stages: the loads of so many steps along K, but one, are under way.
ONE = Config(block_m=1, block_n=1, block_k=1, warps=4, stages=4)
FEW = Config(block_m=8, block_n=1, block_k=1, warps=4, stages=4)


def chained(rows: int, target: Target) -> bool:
    """Whether a launch's programs come before its turn: faster with one row alone, and no GPU
    before sm_90 has it."""
    return rows == 1 and target.architecture == "sm_90" and not interpreting()


@dataclass(frozen=True)
class Blocks:
    """Rows of a weight, and columns of them at a time, that a program takes."""

    n: int
    k: int


def blocks(
    rows: int, N: int, K: int, weights: int, pair: bool, dtype: torch.dtype, target: Target
) -> Blocks:
    """For products with so many weights (N, K); of a pair one scales the other. So many bytes under
    way as a program can hold, but so many programs that each multiprocessor has one or more.

    What a GPU reads in the time of one access, about a microsecond, must be under way to reach its
    full speed: 25 to 40 KB a multiprocessor on Hopper.
    """
    wide = dtype != torch.float32
    size = 4096 if wide else 2048 if rows == 1 else 512  # elements at a time
    longest, shortest, least = (1024, 1, 1) if rows == 1 else (256 if wide else 64, 16, 4)
    n = min(32, 2 * max(1, size // min(triton.next_power_of_2(K), longest)))
    if weights * N < 4 * n * target.processors:
        n //= 2
    while n > least and -(-weights * N // n) < target.processors:
        n //= 2
    k = max(shortest, min(triton.next_power_of_2(K), longest, size // n))
    return Blocks(n, k // 2 if pair and rows > 1 and wide and k > 16 else k)


def project_launch(
    x: Tensor,
    weights: list[Tensor],
    y: Tensor,
    target: Target,
    *,
    split: bool = False,
    read_silu: bool = False,
    write_silu: bool = False,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Launch:
    """y (M, P N) of P <= 3 weights (N, K) and x: (M, K), or (M, P K) with `split`."""
    (N, K), parts = weights[0].shape, len(weights)
    by = blocks(len(x), N, K, parts, False, x.dtype, target)
    three = [*weights, *weights[:1] * (3 - parts)]
    return _launch(
        project_kernel,
        parts * triton.cdiv(N, by.n),
        (x, *three, x if norm is None else norm, x if residual is None else residual, y),
        (N, K, parts, split, read_silu, write_silu, norm is not None, eps, residual is not None),
        by,
        target,
    )


def gate_up_launch(
    z: Tensor, gate: Tensor, up: Tensor, p: Tensor, silu: bool, gate_silu: bool, target: Target
) -> Launch:
    """p (M, N) of z (M, 2 K), gate and up (N, K)."""
    N, K = gate.shape
    by = blocks(len(z), N, K, 1, True, z.dtype, target)
    tensors = (z, gate, up, p)
    return _launch(
        gate_up_kernel, triton.cdiv(N, by.n), tensors, (N, K, silu, gate_silu), by, target
    )


def _launch(
    kernel: object,
    programs: int,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    by: Blocks,
    target: Target,
) -> Launch:
    """The first tensor has the rows."""
    rows = len(tensors[0])
    config, early = ONE if rows == 1 else FEW, chained(rows, target)
    return Launch(
        kernel=kernel,
        grid=(programs,),
        tensors=tensors,
        numbers=(rows, *numbers, early, config.block_m, by.n, by.k, config.stages),
        config=config,
        dependent=early,
    )
