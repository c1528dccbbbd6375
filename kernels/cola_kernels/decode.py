# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""Low-rank layers of a few rows, as in decoding: what matters is the bytes of the weights.

`encode` is y_i = B_i s(A_i x), maybe of a normalised x and with a residual; `mlp` is the gated MLP
of such weights. Each is a list of phases, of which one reads all that the one before wrote:

    encode  0: h = s(norm(x) A^T)                   1: y = h B^T + residual
    mlp     0: h = s(norm(x) [A_g; A_u]^T)          1: p = f(h_g B_g^T) * (h_u B_u^T)
            2: h_d = s(p A_d^T)                     3: y = h_d B_d^T + residual

What lies between two phases is one of three things:

    together   one cooperative launch; a barrier of the whole grid
    chained    a launch each; the next one's programs are there before its turn comes (programmatic
               dependent launch, from sm_90 on)
    apart      a launch each

While programs wait for their turn, the first two have the L2 cache fetch the weights they are to
read. Any phase can be launched alone: 0 is `down` and 1 is `up`, where it is the phase that reads z
that applies s, as z is an output; and `gated_down` is phases 1 and 2.

norm(x) = x * w * rstd is a prologue, x * w, and an epilogue: rstd is a factor of the whole row, and
every program reads the whole row anyway.

Shapes: M rows, at most 16; x (M, d), each A (r, d), each B (d_1, r); all contiguous. One row is
multiplied and summed in fp32 without tensor cores; more rows are a product with tensor cores.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE = tl.constexpr(128)  # bytes that L2 fetches for one address
LINES = tl.constexpr(128)  # that a program asks for at a time: one a thread
TURN = tl.constexpr(1 << 30)


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def one_row(
    x_ptr, weights, up_ptr, up_weights, norm_ptr, K,
    SILU: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIR: tl.constexpr,
    FRESH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`tile_product` of one row: multiplied and summed in fp32."""
    cache: tl.constexpr = ".cg" if FRESH else ""
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = k + tl.arange(0, BLOCK_K)
        inside = at < K
        w = tl.load(weights + k, mask=inside[None, :], other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0, cache_modifier=cache).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            x = silu(x)
        if PAIR:
            w_up = tl.load(up_weights + k, mask=inside[None, :], other=0.0)
            z = tl.load(up_ptr + at, mask=inside, other=0.0, cache_modifier=cache).to(tl.float32)
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
    FRESH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`tile_product` of several rows, by tensor cores."""
    dtype = x_ptr.dtype.element_ty
    cache: tl.constexpr = ".cg" if FRESH else ""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up_acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    rows = tl.arange(0, BLOCK_M)[:, None]
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = k + tl.arange(0, BLOCK_K)
        inside = (at < K)[None, :]
        row = rows * stride + at[None, :]
        w = tl.load(weights + k, mask=inside, other=0.0)
        x = tl.load(x_ptr + row, mask=(rows < M) & inside, other=0.0, cache_modifier=cache)
        if NORM:
            scale = tl.load(norm_ptr + at, mask=at < K, other=0.0).to(tl.float32)
            x = x.to(tl.float32)
            squares += tl.sum(x * x, 1)
            x = (x * scale[None, :]).to(dtype)
        if SILU:
            x = silu(x.to(tl.float32)).to(dtype)
        if PAIR:
            w_up = tl.load(up_weights + k, mask=inside, other=0.0)
            z = tl.load(up_ptr + row, mask=(rows < M) & inside, other=0.0, cache_modifier=cache)
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
    FRESH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The fp32 tile (BLOCK_M, BLOCK_N) of s(x) W^T or norm(x) W^T, from W's row `column` on; with
    PAIR a second one, of other rows and another weight, in the same loop.

    FRESH: programs of this launch wrote x, so that it must not come from a cache of one's own.
    """
    columns = tl.minimum(column + tl.arange(0, BLOCK_N), N - 1)
    at = columns[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if BLOCK_M == 1:
        acc, up_acc = one_row(x_ptr, weight_ptr + at, up_ptr, up_weight_ptr + at, norm_ptr, K,
                              SILU, NORM, EPS, PAIR, FRESH, BLOCK_N, BLOCK_K, STAGES)  # fmt: skip
    else:
        acc, up_acc = few_rows(x_ptr, stride, weight_ptr + at, up_ptr, up_weight_ptr + at, norm_ptr,
                               M, K, SILU, NORM, EPS, PAIR, FRESH, BLOCK_M, BLOCK_N, BLOCK_K,
                               STAGES)  # fmt: skip
    return acc, up_acc


@triton.jit
def project(
    x_ptr, w0, w1, w2, norm_ptr, residual_ptr, y_ptr, M, N, K,
    PARTS: tl.constexpr, APART: tl.constexpr, READ_SILU: tl.constexpr, WRITE_SILU: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, RESIDUAL: tl.constexpr, FRESH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y (M, PARTS N): the products of x with each of so many weights (N, K), side by side.

    APART: x is (M, PARTS K), and each weight has columns of its own; else all have (M, K).
    READ_SILU, WRITE_SILU: of s(x); s(y).
    """
    stride = PARTS * K if APART else K
    each = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), PARTS * each, tl.num_programs(0)):
        part = tile // each
        column = tile % each * BLOCK_N
        weight = w0
        if PARTS > 1:
            weight = tl.where(part == 1, w1, weight)
        if PARTS > 2:
            weight = tl.where(part == 2, w2, weight)
        x = x_ptr + part * K if APART else x_ptr
        acc, _ = tile_product(x, stride, weight, x, weight, norm_ptr, column, M, N, K,
                              READ_SILU, NORM, EPS, False, FRESH,
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


@triton.jit
def gate_times_up(
    z_ptr, gate, up, p_ptr, M, N, K,
    SILU: tl.constexpr, GATE_SILU: tl.constexpr, FRESH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """p (M, N) = f(s(z_g) gate^T) * (s(z_u) up^T) of z (M, 2 K) and two weights (N, K)."""
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        column = tile * BLOCK_N
        g, u = tile_product(z_ptr, 2 * K, gate, z_ptr + K, up, z_ptr, column, M, N, K,
                            SILU, False, 0.0, True, FRESH,
                            BLOCK_M, BLOCK_N, BLOCK_K, STAGES)  # fmt: skip
        if GATE_SILU:
            g = silu(g)
        rows = tl.arange(0, BLOCK_M)[:, None]
        columns = column + tl.arange(0, BLOCK_N)[None, :]
        mask = (rows < M) & (columns < N)
        tl.store(p_ptr + rows * N + columns, (g * u).to(p_ptr.dtype.element_ty), mask=mask)


@triton.jit
def prefetch(
    w0, w1, w2, N, K, PARTS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """The L2 cache fetches what this program is to read of the weights (N, K) in `project`."""
    width: tl.constexpr = LINE * 8 // w0.dtype.element_ty.primitive_bitwidth
    each = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), PARTS * each, tl.num_programs(0)):
        part = tile // each
        row = tile % each * BLOCK_N
        weight = w0
        if PARTS > 1:
            weight = tl.where(part == 1, w1, weight)
        if PARTS > 2:
            weight = tl.where(part == 2, w2, weight)
        size = tl.minimum(BLOCK_N, N - row) * K
        for start in tl.range(0, size, LINES * width):
            at = tl.minimum(start + tl.arange(0, LINES) * width, size - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [weight + row * K + at],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@triton.jit
def arrive(arrived_ptr):
    """One program's arrival at a barrier; returns the counter before it.

    The arrivals of a barrier sum to TURN, so that its bit turns over when the last is there, and
    the bits below are 0 again: the counter is never reset, and the next barrier, of whatever grid,
    finds it as this one did. (The scheme of cooperative groups in CUDA.)
    """
    one = 1
    first = TURN - (tl.num_programs(0) - 1)
    step = tl.where(tl.program_id(0) == 0, first, one)
    return tl.atomic_add(arrived_ptr, step, sem="release", scope="gpu")


@triton.jit
def grid_barrier(arrived_ptr):
    """Waits for every program of the grid, all of which must be on the GPU at once."""
    tl.debug_barrier()  # every thread's stores come before the release
    before = arrive(arrived_ptr)
    turned = False
    while not turned:
        now = tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu")
        turned = ((before ^ now) & TURN) != 0
    tl.debug_barrier()


@triton.jit(do_not_specialize=["M"])
def encode_kernel(
    x_ptr, a0, a1, a2, norm_ptr, z_ptr, b0, b1, b2, residual_ptr, y_ptr, arrived_ptr,
    M, D, R, D_OUT,
    PARTS: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, RESIDUAL: tl.constexpr,
    READ_SILU: tl.constexpr, WRITE_SILU: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr,
    CHAINED: tl.constexpr, BLOCK_M: tl.constexpr,
    A_N: tl.constexpr, A_K: tl.constexpr, B_N: tl.constexpr, B_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Phases FIRST to END - 1."""
    if CHAINED:
        gdc_launch_dependents()
        if FIRST == 0:
            prefetch(a0, a1, a2, R, D, PARTS, A_N)
        else:
            prefetch(b0, b1, b2, D_OUT, R, PARTS, B_N)
        gdc_wait()
    if FIRST == 0:
        project(x_ptr, a0, a1, a2, norm_ptr, x_ptr, z_ptr, M, R, D,
                PARTS, False, False, WRITE_SILU, NORM, EPS, False, False,
                BLOCK_M, A_N, A_K, STAGES)  # fmt: skip
    if END - FIRST == 2:
        prefetch(b0, b1, b2, D_OUT, R, PARTS, B_N)
        grid_barrier(arrived_ptr)
    if END == 2:
        project(z_ptr, b0, b1, b2, z_ptr, residual_ptr, y_ptr, M, D_OUT, R,
                PARTS, True, READ_SILU, False, False, EPS, RESIDUAL, FIRST == 0,
                BLOCK_M, B_N, B_K, STAGES)  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def mlp_kernel(
    x_ptr, gate_a, up_a, norm_ptr, z_ptr, gate_b, up_b, p_ptr, down_a, z_down_ptr, down_b,
    residual_ptr, y_ptr, arrived_ptr,
    M, D, R, F, R_DOWN, D_OUT,
    GATE_SILU: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, RESIDUAL: tl.constexpr,
    READ_SILU: tl.constexpr, WRITE_SILU: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr,
    CHAINED: tl.constexpr, BLOCK_M: tl.constexpr,
    A_N: tl.constexpr, A_K: tl.constexpr, B_N: tl.constexpr, B_K: tl.constexpr,
    DOWN_A_N: tl.constexpr, DOWN_A_K: tl.constexpr, DOWN_B_N: tl.constexpr, DOWN_B_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Phases FIRST to END - 1."""
    if CHAINED:
        gdc_launch_dependents()
        if FIRST == 0:
            prefetch(gate_a, up_a, up_a, R, D, 2, A_N)
        if FIRST == 1:
            prefetch(gate_b, gate_b, gate_b, F, R, 1, B_N)
            prefetch(up_b, up_b, up_b, F, R, 1, B_N)
        if FIRST == 2:
            prefetch(down_a, down_a, down_a, R_DOWN, F, 1, DOWN_A_N)
        if FIRST == 3:
            prefetch(down_b, down_b, down_b, D_OUT, R_DOWN, 1, DOWN_B_N)
        gdc_wait()
    if FIRST == 0:
        project(x_ptr, gate_a, up_a, up_a, norm_ptr, x_ptr, z_ptr, M, R, D,
                2, False, False, WRITE_SILU, NORM, EPS, False, False,
                BLOCK_M, A_N, A_K, STAGES)  # fmt: skip
    if FIRST == 0 and END > 1:
        prefetch(gate_b, gate_b, gate_b, F, R, 1, B_N)
        prefetch(up_b, up_b, up_b, F, R, 1, B_N)
        grid_barrier(arrived_ptr)
    if FIRST <= 1 and END > 1:
        gate_times_up(z_ptr, gate_b, up_b, p_ptr, M, F, R, READ_SILU, GATE_SILU, FIRST < 1,
                      BLOCK_M, B_N, B_K, STAGES)  # fmt: skip
    if FIRST <= 1 and END > 2:
        prefetch(down_a, down_a, down_a, R_DOWN, F, 1, DOWN_A_N)
        grid_barrier(arrived_ptr)
    if FIRST <= 2 and END > 2:
        project(p_ptr, down_a, down_a, down_a, p_ptr, p_ptr, z_down_ptr, M, R_DOWN, F,
                1, False, False, WRITE_SILU, False, EPS, False, FIRST < 2,
                BLOCK_M, DOWN_A_N, DOWN_A_K, STAGES)  # fmt: skip
    if FIRST <= 2 and END > 3:
        prefetch(down_b, down_b, down_b, D_OUT, R_DOWN, 1, DOWN_B_N)
        grid_barrier(arrived_ptr)
    if END > 3:
        project(z_down_ptr, down_b, down_b, down_b, z_down_ptr, residual_ptr, y_ptr,
                M, D_OUT, R_DOWN, 1, False, False, False, False, EPS, RESIDUAL, FIRST < 3,
                BLOCK_M, DOWN_B_N, DOWN_B_K, STAGES)  # fmt: skip
