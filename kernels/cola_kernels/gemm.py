# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""`up_add`'s kernel, y = h B^T + residual, and what it shares with those of `gated`.

Every kernel here is persistent: as many programs as the GPU has multiprocessors walk over the
tiles, so that the loads of the next begin while the last is stored. Matrices are read and written
through tensor descriptors: by TMA where there is one, which fills with zeros past an edge and
stores nothing there, and by masked vectors elsewhere. Rows are contiguous, and every width is a
multiple of 16 (`launch.padded`): strides follow from widths, and a kernel is compiled once.

Accumulation in fp32; fp32 inputs are multiplied exactly (IEEE, no TF32).
"""

import triton
import triton.language as tl
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.tiles import Target, choose, programs

# Tiles are walked in groups of this many row blocks, so that a wave shares its operands in L2.
GROUP_M = 8
PARTS = 4  # of a tile, in epilogues that read another operand


@triton.jit
def tile_origin(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """First row and column of a tile, in grouped order."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * columns)
    height = tl.minimum(rows - group * GROUP_M, GROUP_M)
    inside = tile % (GROUP_M * columns)
    row = group * GROUP_M + inside % height
    column = inside // height
    return row * BLOCK_M, column * BLOCK_N


@triton.jit
def matrix(ptr, rows, columns, stride, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """The descriptor of a (rows, columns) matrix that is read or written in blocks."""
    return tl.make_tensor_descriptor(ptr, [rows, columns], [stride, 1], [BLOCK_ROWS, BLOCK_COLUMNS])


@triton.jit
def halves(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile, as views of its registers."""
    return tl.split(tl.permute(tl.reshape(x, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def store_sum(
    acc, residual, y, row, column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y = acc + residual, PARTS of a tile one after the other: the whole would take so many
    registers and so much shared memory that one program filled a multiprocessor, and its loads
    and stores here would hide behind nothing."""
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = halves(acc, BLOCK_M, BLOCK_N)
        store_sum(left, residual, y, row, column, BLOCK_M, HALF, PARTS // 2)
        store_sum(right, residual, y, row, column + HALF, BLOCK_M, HALF, PARTS // 2)
    else:
        acc += residual.load([row, column]).to(tl.float32)
        y.store([row, column], acc.to(y.dtype))


@triton.jit(do_not_specialize=["M"])
def up_add_kernel(
    h_ptr, weight_ptr, residual_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    h = matrix(h_ptr, M, K, K, BLOCK_M, BLOCK_K)
    weight = matrix(weight_ptr, N, K, K, BLOCK_N, BLOCK_K)
    residual = matrix(residual_ptr, M, N, N, BLOCK_M, WIDTH)
    y = matrix(y_ptr, M, N, N, BLOCK_M, WIDTH)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile_origin(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            b = weight.load([column, k]).T
            acc = tl.dot(h.load([row, k]), b, acc, input_precision="ieee")
        store_sum(acc, residual, y, row, column, BLOCK_M, BLOCK_N, PARTS)


def up_add_launch(h: Tensor, weight: Tensor, residual: Tensor, y: Tensor, target: Target) -> Launch:
    """y (n, d) = h (n, r) weight (d, r)^T + residual (n, d)."""
    (M, K), N = h.shape, weight.shape[0]
    config = choose("up_add", target, h.dtype)
    blocks = (config.block_m, config.block_n, config.block_k)
    return Launch(
        kernel=up_add_kernel,
        grid=(programs(config, target, M, N),),
        tensors=(h, weight, residual, y),
        numbers=(M, N, K, *blocks, GROUP_M, PARTS),
        config=config,
    )
