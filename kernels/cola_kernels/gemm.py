# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""out = epilogue(a @ b): the one GEMM kernel behind `down`, `up` and their backward passes.

Shapes: a (M, K), b (K, N), out (M, N). Accumulation in fp32; fp32 inputs are multiplied exactly
(IEEE, no TF32).
"""

import triton
import triton.language as tl
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.tiles import choose

# Tiles are walked in groups of this many row blocks, so that a wave shares its operands in L2.
GROUP_M = 8


@triton.jit
def tile_origin(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """This program's first row and column, in grouped order."""
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * columns)
    height = tl.minimum(rows - group * GROUP_M, GROUP_M)
    inside = pid % (GROUP_M * columns)
    row = group * GROUP_M + inside % height
    column = inside // height
    return row * BLOCK_M, column * BLOCK_N


@triton.jit
def dot_tile(
    a_ptr, b_ptr, row, column, M, N, K, stride_a, stride_b,
    B_K_MAJOR: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The (BLOCK_M, BLOCK_N) fp32 tile of a @ b at (row, column).

    b is contiguous along K with B_K_MAJOR, else along N. Past the last row or column the tile
    holds no meaning: what lies there is not to be stored. Only what K leaves over, and an N
    that does not fill its tiles in the N-contiguous case, take masks, which cost vector width.
    """
    rm = tl.minimum(tl.arange(0, BLOCK_M), M - 1 - row)  # repeats the last row instead of masking
    rn = tl.arange(0, BLOCK_N)
    rk = tl.arange(0, BLOCK_K)
    a_start = a_ptr + row.to(tl.int64) * stride_a
    a = a_start + (rm[:, None] * stride_a + rk[None, :])
    if B_K_MAJOR:
        rn = tl.minimum(rn, N - 1 - column)
        b_start = b_ptr + column.to(tl.int64) * stride_b
        b = b_start + (rn[None, :] * stride_b + rk[:, None])
        step = BLOCK_K
    else:
        b_start = b_ptr + column
        b = b_start + (rn[None, :] + rk[:, None] * stride_b)
        step = BLOCK_K * stride_b
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, K // BLOCK_K):
        if B_K_MAJOR or EVEN_N:
            b_tile = tl.load(b)
        else:
            b_tile = tl.load(b, mask=rn[None, :] < N - column, other=0.0)
        acc = tl.dot(tl.load(a), b_tile, acc, input_precision="ieee")
        a += BLOCK_K
        b += step
    if not EVEN_K:
        # in steps of 16: a masked load of a whole step takes more registers than there are
        rk = tl.arange(0, 16)
        at = K // BLOCK_K * BLOCK_K
        a = a_start + (rm[:, None] * stride_a + (at + rk)[None, :])
        if B_K_MAJOR:
            b = b_start + (rn[None, :] * stride_b + (at + rk)[:, None])
        else:
            b = b_start + (rn[None, :] + (at + rk)[:, None] * stride_b)
        for k in tl.range(at, K, 16, num_stages=1):
            a_tile = tl.load(a, mask=rk[None, :] < K - k, other=0.0)
            b_mask = rk[:, None] < K - k
            if not (B_K_MAJOR or EVEN_N):
                b_mask = b_mask & (rn[None, :] < N - column)
            acc = tl.dot(a_tile, tl.load(b, mask=b_mask, other=0.0), acc, input_precision="ieee")
            a += 16
            b += 16 if B_K_MAJOR else 16 * stride_b
    return acc


@triton.jit
def tile_pointers(ptr, row, column, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pointers to a tile of a row-major matrix: 64 bits where it starts, 32 within it."""
    rm, rn = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    return ptr + (row.to(tl.int64) * stride + column) + (rm[:, None] * stride + rn[None, :])


@triton.jit
def tile_mask(row, column, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rm, rn = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    return (rm[:, None] < M - row) & (rn[None, :] < N - column)


@triton.jit
def silu_derivative(x):
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def halves(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of a tile, as views of its registers."""
    return tl.split(tl.permute(tl.reshape(x, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))


@triton.jit
def store_tile(
    acc, extra_ptr, out_ptr, row, column, M, N, stride_extra, stride_out,
    EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Apply the epilogue and store, PARTS of a tile one after the other: all at once would spill
    registers."""
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = halves(acc, BLOCK_M, BLOCK_N)
        store_tile(left, extra_ptr, out_ptr, row, column, M, N, stride_extra, stride_out,
                   EPILOGUE, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
        store_tile(right, extra_ptr, out_ptr, row, column + HALF, M, N, stride_extra, stride_out,
                   EPILOGUE, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
    else:
        mask = tile_mask(row, column, M, N, BLOCK_M, BLOCK_N)
        if EPILOGUE != "none":
            extras = tile_pointers(extra_ptr, row, column, stride_extra, BLOCK_M, BLOCK_N)
            extra = tl.load(extras, mask=mask, other=0.0).to(tl.float32)
            if EPILOGUE == "add":
                acc += extra
            else:
                acc *= silu_derivative(extra)
        outs = tile_pointers(out_ptr, row, column, stride_out, BLOCK_M, BLOCK_N)
        tl.store(outs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gemm_kernel(
    a_ptr, b_ptr, extra_ptr, out_ptr, M, N, K, stride_a, stride_b, stride_extra, stride_out,
    EPILOGUE: tl.constexpr, B_K_MAJOR: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    row, column = tile_origin(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    acc = dot_tile(
        a_ptr, b_ptr, row, column, M, N, K, stride_a, stride_b,
        B_K_MAJOR, EVEN_N, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_tile(
        acc, extra_ptr, out_ptr, row, column, M, N, stride_extra, stride_out,
        EPILOGUE, BLOCK_M, BLOCK_N, 1 if EPILOGUE == "none" else 4,
    )  # fmt: skip


def gemm(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    architecture: str,
    epilogue: str = "none",
    extra: Tensor | None = None,
) -> Launch:
    """The launch of out = epilogue(a @ b).

    Args:
        a: (M, K), contiguous along K.
        b: (K, N), contiguous along either axis.
        out: (M, N), contiguous along N.
        epilogue: none; add (`extra` is added); silu_backward (times SiLU'(extra)).
        extra: (M, N), contiguous along N.
    """
    (M, K), N = a.shape, b.shape[1]
    config = choose("gemm", architecture, a.dtype, N)
    k_major = b.stride(0) == 1
    extra = out if extra is None else extra
    return Launch(
        kernel=gemm_kernel,
        grid=(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),),
        arguments={
            "a_ptr": a,
            "b_ptr": b,
            "extra_ptr": extra,
            "out_ptr": out,
            "M": M,
            "N": N,
            "K": K,
            "stride_a": a.stride(0),
            "stride_b": b.stride(1 if k_major else 0),
            "stride_extra": extra.stride(0),
            "stride_out": out.stride(0),
            "EPILOGUE": epilogue,
            "B_K_MAJOR": k_major,
            "EVEN_N": N % config.block_n == 0,
            "EVEN_K": K % config.block_k == 0,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "GROUP_M": GROUP_M,
        },
        config=config,
    )


def aligned(weight: Tensor) -> Tensor:
    """`weight`, copied into rows of a multiple of 16 elements if its own are not.

    Rows that start off a 16-byte boundary are loaded two bytes at a time, in every row block
    anew; the copy costs one pass over a weight. The padding is not part of the view returned.
    """
    rows, columns = weight.shape
    if weight.stride(1) == 1 and weight.stride(0) * weight.element_size() % 16 == 0:
        return weight
    return empty_aligned(weight, rows, columns).copy_(weight)


def empty_aligned(like: Tensor, rows: int, columns: int) -> Tensor:
    """An uninitialised (rows, columns) matrix whose rows lie a multiple of 16 elements apart.

    The memory is there up to the end of the last row's padding: kernels may store into it.
    """
    return like.new_empty(rows, -(-columns // 16) * 16)[:, :columns]
