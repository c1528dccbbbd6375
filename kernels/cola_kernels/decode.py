# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""Low-rank layers of a few rows, as in decoding: what matters is the bytes of the weights.

`encode` is y_i = B_i s(A_i x), maybe of a normalised x and with a residual; `mlp` is the gated MLP
of such weights. Each is a list of phases, of which one reads all that the one before wrote, so that
each is a launch:

    encode  0: h = s(norm(x) A^T)                   1: y = h B^T + residual
    mlp     0: h = s(norm(x) [A_g; A_u]^T)          1: p = f(h_g B_g^T) * (h_u B_u^T)
            2: h_d = s(p A_d^T)                     3: y = h_d B_d^T + residual

All are `project_kernel`, but for the MLP's 1, `gate_up_kernel`. Chained, a launch's programs are
there before its turn comes (programmatic dependent launch, from sm_90 on), and have the L2 cache
fetch the weights that they are to read.

norm(x) = x * w * rstd is a prologue, x * w, and an epilogue: rstd is a factor of the whole row, and
every program reads the whole row anyway.

Shapes: M rows, at most 8; x (M, d), each A (r, d), each B (d_1, r); all contiguous. One row is
multiplied and summed in fp32 without tensor cores; more rows are a product with tensor cores.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE = tl.constexpr(128)  # bytes that L2 fetches for one address
LINES = tl.constexpr(128)  # that a program asks for at a time: one a thread


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def one_row(
    x_ptr, weights, up_ptr, up_weights, norm_ptr, K,
    SILU: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`tile_product` of one row: multiplied and summed in fp32."""
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = k + tl.arange(0, BLOCK_K)
        inside = at < K
        w = tl.load(weights + k, mask=inside[None, :], other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            x = silu(x)
        if PAIR:
            w_up = tl.load(up_weights + k, mask=inside[None, :], other=0.0)
            z = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if SILU:
                z = silu(z)
            up_products += w_up.to(tl.float32) * z[None, :]
        products += w.to(tl.float32) * x[None, :]
    acc = tl.sum(products, 1)
    if NORM:
        acc *= tl.rsqrt(tl.sum(squares, 0) / K + EPS)
    up_acc = tl.sum(up_products, 1) if PAIR else acc
    return acc[None, :], up_acc[None, :]


@triton.jit
def few_rows(
    x_ptr, stride, weights, up_ptr, up_weights, norm_ptr, M, K,
    SILU: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`tile_product` of several rows, by tensor cores."""
    dtype = x_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    rows = tl.arange(0, BLOCK_M)[:, None]
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = k + tl.arange(0, BLOCK_K)
        inside = (at < K)[None, :]
        row = rows * stride + at[None, :]
        w = tl.load(weights + k, mask=inside, other=0.0)
        x = tl.load(x_ptr + row, mask=(rows < M) & inside, other=0.0)
        if NORM:
            scale = tl.load(norm_ptr + at, mask=at < K, other=0.0).to(tl.float32)
            x = x.to(tl.float32)
            squares += tl.sum(x * x, 1)
            x = (x * scale[None, :]).to(dtype)
        if SILU:
            x = silu(x.to(tl.float32)).to(dtype)
        if PAIR:
            w_up = tl.load(up_weights + k, mask=inside, other=0.0)
            z = tl.load(up_ptr + row, mask=(rows < M) & inside, other=0.0)
            if SILU:
                z = silu(z.to(tl.float32)).to(dtype)
            up_acc = tl.dot(z, w_up.T, up_acc, input_precision="ieee")
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    if NORM:
        acc *= tl.rsqrt(squares / K + EPS)[:, None]
    return acc, up_acc


@triton.jit
def tile_product(
    x_ptr, stride, weight_ptr, up_ptr, up_weight_ptr, norm_ptr, column, M, N, K,
    SILU: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The fp32 tile (BLOCK_M, BLOCK_N) of s(x) W^T or norm(x) W^T, from W's row `column` on; with
    PAIR a second one, of other rows and another weight, in the same loop."""
    columns = tl.minimum(column + tl.arange(0, BLOCK_N), N - 1)
    at = columns[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if BLOCK_M == 1:
        acc, up_acc = one_row(x_ptr, weight_ptr + at, up_ptr, up_weight_ptr + at, norm_ptr, K,
                              SILU, NORM, EPS, PAIR, BLOCK_N, BLOCK_K, STAGES)  # fmt: skip
    else:
        acc, up_acc = few_rows(x_ptr, stride, weight_ptr + at, up_ptr, up_weight_ptr + at, norm_ptr,
                               M, K, SILU, NORM, EPS, PAIR, BLOCK_M, BLOCK_N, BLOCK_K,
                               STAGES)  # fmt: skip
    return acc, up_acc


@triton.jit
def wait_for_turn(weight, up_weight, column, N, K, PAIR: tl.constexpr, BLOCK_N: tl.constexpr):
    """Lets the next launch come, and has L2 fetch what this program is to read of its weights."""
    gdc_launch_dependents()
    prefetch(weight, column, N, K, BLOCK_N)
    if PAIR:
        prefetch(up_weight, column, N, K, BLOCK_N)
    gdc_wait()


@triton.jit
def prefetch(weight, row, N, K, BLOCK_N: tl.constexpr):
    """Rows from `row` on of a weight (N, K)."""
    width: tl.constexpr = LINE * 8 // weight.dtype.element_ty.primitive_bitwidth
    size = tl.minimum(BLOCK_N, N - row) * K
    for start in tl.range(0, size, LINES * width):
        at = tl.minimum(start + tl.arange(0, LINES) * width, size - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [weight + row * K + at],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def project_kernel(
    x_ptr, w0, w1, w2, norm_ptr, residual_ptr, y_ptr, M, N, K,
    PARTS: tl.constexpr, SPLIT: tl.constexpr, READ_SILU: tl.constexpr, WRITE_SILU: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, RESIDUAL: tl.constexpr, CHAINED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y (M, PARTS N): the products of x with each of so many weights (N, K), side by side.

    SPLIT: x is (M, PARTS K), and each weight has columns of its own; else all have (M, K).
    READ_SILU, WRITE_SILU: of s(x); s(y).
    """
    each = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // each
    column = tl.program_id(0) % each * BLOCK_N
    weight = w0
    if PARTS > 1:
        weight = tl.where(part == 1, w1, weight)
    if PARTS > 2:
        weight = tl.where(part == 2, w2, weight)
    if CHAINED:
        wait_for_turn(weight, weight, column, N, K, False, BLOCK_N)
    x = x_ptr + part * K if SPLIT else x_ptr
    acc, _ = tile_product(x, PARTS * K if SPLIT else K, weight, x, weight, norm_ptr, column,
                          M, N, K, READ_SILU, NORM, EPS, False,
                          BLOCK_M, BLOCK_N, BLOCK_K, STAGES)  # fmt: skip
    rows = tl.arange(0, BLOCK_M)[:, None]
    columns = column + tl.arange(0, BLOCK_N)[None, :]
    at = rows * (PARTS * N) + part * N + columns
    mask = (rows < M) & (columns < N)
    if WRITE_SILU:
        acc = silu(acc)
    if RESIDUAL:
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def gate_up_kernel(
    z_ptr, gate, up, p_ptr, M, N, K,
    SILU: tl.constexpr, GATE_SILU: tl.constexpr, CHAINED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """p (M, N) = f(s(z_g) gate^T) * (s(z_u) up^T) of z (M, 2 K) and two weights (N, K)."""
    column = tl.program_id(0) * BLOCK_N
    if CHAINED:
        wait_for_turn(gate, up, column, N, K, True, BLOCK_N)
    g, u = tile_product(z_ptr, 2 * K, gate, z_ptr + K, up, z_ptr, column, M, N, K,
                        SILU, False, 0.0, True, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)  # fmt: skip
    if GATE_SILU:
        g = silu(g)
    rows = tl.arange(0, BLOCK_M)[:, None]
    columns = column + tl.arange(0, BLOCK_N)[None, :]
    mask = (rows < M) & (columns < N)
    tl.store(p_ptr + rows * N + columns, (g * u).to(p_ptr.dtype.element_ty), mask=mask)
