# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""The loss of logits and, in their place, its gradient: one program a row.

A row is read twice and written once. The first pass keeps a running maximum and a sum of
exponentials relative to it (arXiv 1805.02867); the second finds the row in the L2 cache as long as
the rows in flight fit there (64 kB each at V = 32,000 in 16 bits).

Shapes: n rows, V columns.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.tiles import Config

LOG2_E = tl.constexpr(1.4426950408889634)
# 16 elements a thread, in 16 bits two loads of 16 bytes. With 40 registers three programs fit on
# an SM: 396 rows on an H100, 25 MB of its 50 MB of L2 cache at V = 32,000.
CONFIG = Config(block_m=1, block_n=8192, block_k=1, warps=16, stages=1)


@triton.jit
def cross_entropy_kernel(
    logits_ptr, targets_ptr, losses_ptr, V, stride_logits, ignore_index,
    GRADIENTS: tl.constexpr, Z_LOSS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * stride_logits
    dtype = logits_ptr.dtype.element_ty
    columns = tl.arange(0, BLOCK_N)
    target = tl.load(targets_ptr + row)
    # the other term's, behind those of the cross-entropy
    z_ptr = losses_ptr + tl.num_programs(0)
    if target == ignore_index:  # nothing of the row is read
        tl.store(losses_ptr + row, 0.0)
        if Z_LOSS != 0:
            tl.store(z_ptr + row, 0.0)
        if GRADIENTS:
            for at in range(0, V, BLOCK_N):
                zeros = tl.zeros((BLOCK_N,), dtype)
                tl.store(logits + (at + columns), zeros, mask=at + columns < V)
    else:
        # a target that is no column makes the loss NaN, and reads nothing
        there = (target >= 0) & (target < V)
        right = tl.load(logits + target, mask=there, other=float("nan")).to(tl.float32)
        largest = float("-inf")
        total = 0.0
        for at in range(0, V, BLOCK_N):
            mask = at + columns < V
            x = tl.load(logits + (at + columns), mask=mask, other=float("-inf")).to(tl.float32)
            before = largest
            largest = tl.maximum(before, tl.max(x, 0))
            total *= tl.exp2((before - largest) * LOG2_E)
            total += tl.sum(tl.exp2((x - largest) * LOG2_E), 0)
        tl.store(losses_ptr + row, tl.log(total) + (largest - right))
        log_sum = tl.log(total) + largest
        if Z_LOSS != 0:
            tl.store(z_ptr + row, Z_LOSS * log_sum * log_sum)
        if GRADIENTS:
            column = target.to(tl.int32)
            scale = 1.0 / total
            if Z_LOSS != 0:
                scale *= 1.0 + 2.0 * Z_LOSS * log_sum
            for at in range(0, V, BLOCK_N):
                mask = at + columns < V
                x = tl.load(logits + (at + columns), mask=mask, other=float("-inf")).to(tl.float32)
                p = tl.exp2((x - largest) * LOG2_E) * scale
                p = tl.where(at + columns == column, p - 1.0, p)
                tl.store(logits + (at + columns), p.to(dtype), mask=mask)


def cross_entropy_launch(
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    gradients: bool,
    ignore_index: int,
    z_loss: float = 0.0,
) -> Launch:
    """losses (n,), fp32, of logits (n, V), contiguous along V, against targets (n,), int64; with
    `gradients` the logits become softmax - onehot, zero in the rows that are ignored.

    z_loss: losses are (2, n), its term the second row; softmax (1 + 2 z_loss lse) - onehot.
    """
    return Launch(
        kernel=cross_entropy_kernel,
        grid=(logits.shape[0],),
        tensors=(logits, targets, losses),
        numbers=(
            logits.shape[1],
            logits.stride(0),
            ignore_index,
            gradients,
            z_loss,
            CONFIG.block_n,
        ),
        config=CONFIG,
    )


def example_launches(dtype: torch.dtype, device: str = "meta") -> Iterator[tuple[str, Launch]]:
    """(variant, launch) of each way in which models launch the kernel, for the compile report: in
    training and in evaluation, rows that begin on 16 bytes and rows that do not."""
    for V in (32_000, 50_257):
        logits = torch.empty(2048, V, dtype=dtype, device=device)
        targets = torch.zeros(2048, dtype=torch.int64, device=device)
        losses = torch.empty(2048, device=device)
        for gradients in (True, False):
            variant = f"cross_entropy{', gradient' if gradients else ''}, V = {V}"
            yield variant, cross_entropy_launch(logits, targets, losses, gradients, -100)
        losses = torch.empty(2, 2048, device=device)
        variant = f"cross_entropy, gradient with z-loss, V = {V}"
        yield variant, cross_entropy_launch(logits, targets, losses, True, -100, 1e-4)
