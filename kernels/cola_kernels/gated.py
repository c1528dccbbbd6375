# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""The three kernels behind `gated_down`: the middle of the MLP, from rank to rank.

g = h_g B_g^T, u = h_u B_u^T, p = f(g) * u, dp = dz_d A, dg = dp * u * f'(g), du = dp * f(g).

`gated_up` writes p, and with KEEP g and u. Where they were kept, `gated_backward` reads them and
writes dg and du; where nothing was, `gated_recompute` computes their tiles again and writes p too.
dp never reaches memory.

Shapes: M = n rows, N = F, K = r: h (M, 2 K), gate's half first; B_g and B_u (N, K); dz_d (M, R);
A (R, N); everything else (M, N). f = SiLU with GATE_SILU, else the identity. See `gemm` for how
the kernels walk, and for what must be contiguous and a multiple of 16.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cola_kernels.gemm import GROUP_M, PARTS, halves, matrix, tile_origin
from cola_kernels.launch import Launch
from cola_kernels.tiles import Target, choose, programs


@triton.jit
def gate_and_up(
    h_g, h_u, gate, up, row, column, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The fp32 tiles of g and u, in one loop: the pipeline fills once."""
    g = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    u = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        g = tl.dot(h_g.load([row, k]), gate.load([column, k]).T, g, input_precision="ieee")
        u = tl.dot(h_u.load([row, k]), up.load([column, k]).T, u, input_precision="ieee")
    return g, u


@triton.jit
def store_gradients(dp, g, u, dg, du, row, column, GATE_SILU: tl.constexpr):
    """dg and du of a part of a tile, through their descriptors."""
    g, u = g.to(tl.float32), u.to(tl.float32)
    if GATE_SILU:
        s = tl.sigmoid(g)
        du.store([row, column], (dp * (g * s)).to(du.dtype))
        dg.store([row, column], (dp * u * (s * (1.0 + g * (1.0 - s)))).to(dg.dtype))
    else:
        du.store([row, column], (dp * g).to(du.dtype))
        dg.store([row, column], (dp * u).to(dg.dtype))


@triton.jit
def store_from_kept(
    dp, g, u, dg, du, row, column,
    GATE_SILU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """g and u are read, PARTS of a tile one after the other: see `gemm.store_sum`."""
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = halves(dp, BLOCK_M, BLOCK_N)
        store_from_kept(left, g, u, dg, du, row, column,
                        GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
        store_from_kept(right, g, u, dg, du, row, column + HALF,
                        GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
    else:
        g_part, u_part = g.load([row, column]), u.load([row, column])
        store_gradients(dp, g_part, u_part, dg, du, row, column, GATE_SILU)


@triton.jit
def store_from_registers(
    dp, g, u, dg, du, row, column,
    GATE_SILU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        dp_left, dp_right = halves(dp, BLOCK_M, BLOCK_N)
        g_left, g_right = halves(g, BLOCK_M, BLOCK_N)
        u_left, u_right = halves(u, BLOCK_M, BLOCK_N)
        store_from_registers(dp_left, g_left, u_left, dg, du, row, column,
                             GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
        store_from_registers(dp_right, g_right, u_right, dg, du, row, column + HALF,
                             GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
    else:
        store_gradients(dp, g, u, dg, du, row, column, GATE_SILU)


@triton.jit(do_not_specialize=["M"])
def gated_up_kernel(
    h_ptr, gate_ptr, up_ptr, p_ptr, g_ptr, u_ptr, M, N, K,
    GATE_SILU: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    dtype = p_ptr.dtype.element_ty
    h_g = matrix(h_ptr, M, K, 2 * K, BLOCK_M, BLOCK_K)
    h_u = matrix(h_ptr + K, M, K, 2 * K, BLOCK_M, BLOCK_K)
    gate = matrix(gate_ptr, N, K, K, BLOCK_N, BLOCK_K)
    up = matrix(up_ptr, N, K, K, BLOCK_N, BLOCK_K)
    p_out = matrix(p_ptr, M, N, N, BLOCK_M, BLOCK_N)
    if KEEP:
        g_out = matrix(g_ptr, M, N, N, BLOCK_M, BLOCK_N)
        u_out = matrix(u_ptr, M, N, N, BLOCK_M, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile_origin(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        g, u = gate_and_up(h_g, h_u, gate, up, row, column, K, BLOCK_M, BLOCK_N, BLOCK_K)
        if KEEP:
            g_out.store([row, column], g.to(dtype))
            u_out.store([row, column], u.to(dtype))
        if GATE_SILU:
            g *= tl.sigmoid(g)
        p_out.store([row, column], (g * u).to(dtype))


@triton.jit(do_not_specialize=["M"])
def gated_backward_kernel(
    dz_ptr, down_ptr, g_ptr, u_ptr, dg_ptr, du_ptr, M, N, R,
    GATE_SILU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    dz = matrix(dz_ptr, M, R, R, BLOCK_M, BLOCK_K)
    down = matrix(down_ptr, R, N, N, BLOCK_K, BLOCK_N)
    g = matrix(g_ptr, M, N, N, BLOCK_M, WIDTH)
    u = matrix(u_ptr, M, N, N, BLOCK_M, WIDTH)
    dg = matrix(dg_ptr, M, N, N, BLOCK_M, WIDTH)
    du = matrix(du_ptr, M, N, N, BLOCK_M, WIDTH)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile_origin(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        dp = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, R, BLOCK_K):
            b = down.load([k, column])
            dp = tl.dot(dz.load([row, k]), b, dp, input_precision="ieee")
        store_from_kept(dp, g, u, dg, du, row, column, GATE_SILU, BLOCK_M, BLOCK_N, PARTS)


@triton.jit(do_not_specialize=["M"])
def gated_recompute_kernel(
    dz_ptr, down_ptr, h_ptr, gate_ptr, up_ptr, dg_ptr, du_ptr, p_ptr, M, N, K, R,
    GATE_SILU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    dtype = dg_ptr.dtype.element_ty
    dz = matrix(dz_ptr, M, R, R, BLOCK_M, BLOCK_K)
    down = matrix(down_ptr, R, N, N, BLOCK_K, BLOCK_N)
    h_g = matrix(h_ptr, M, K, 2 * K, BLOCK_M, BLOCK_K)
    h_u = matrix(h_ptr + K, M, K, 2 * K, BLOCK_M, BLOCK_K)
    gate = matrix(gate_ptr, N, K, K, BLOCK_N, BLOCK_K)
    up = matrix(up_ptr, N, K, K, BLOCK_N, BLOCK_K)
    dg = matrix(dg_ptr, M, N, N, BLOCK_M, WIDTH)
    du = matrix(du_ptr, M, N, N, BLOCK_M, WIDTH)
    p_out = matrix(p_ptr, M, N, N, BLOCK_M, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = tile_origin(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        g, u = gate_and_up(h_g, h_u, gate, up, row, column, K, BLOCK_M, BLOCK_N, BLOCK_K)
        # g and u wait in 16 bits, as if they had been kept, and p leaves before dp accumulates:
        # there are not registers for three fp32 tiles
        g_kept, u_kept = g.to(dtype), u.to(dtype)
        if GATE_SILU:
            g *= tl.sigmoid(g)
        p_out.store([row, column], (g * u).to(dtype))
        dp = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, R, BLOCK_K):
            b = down.load([k, column])
            dp = tl.dot(dz.load([row, k]), b, dp, input_precision="ieee")
        store_from_registers(
            dp, g_kept, u_kept, dg, du, row, column, GATE_SILU, BLOCK_M, BLOCK_N, PARTS
        )


def gated_up_launch(
    h: Tensor, gate: Tensor, up: Tensor, p: Tensor, kept: tuple[Tensor, ...],
    gate_silu: bool, target: Target,
) -> Launch:  # fmt: skip
    """p (n, F) of h (n, 2 r) and the weights (F, r); into `kept` g and u (n, F), if given."""
    g, u = kept or (p, p)
    tensors = (h, gate, up, p, g, u)
    shapes = (h.shape[0], *gate.shape)
    return _launch(gated_up_kernel, tensors, shapes, (gate_silu, bool(kept)), (), target)


def gated_backward_launch(
    dz_d: Tensor, down: Tensor, g: Tensor, u: Tensor, dg: Tensor, du: Tensor,
    gate_silu: bool, target: Target,
) -> Launch:  # fmt: skip
    """dg and du (n, F) of dz_d (n, r_d), A (r_d, F), and g and u (n, F)."""
    tensors = (dz_d, down, g, u, dg, du)
    shapes = (*g.shape, down.shape[0])
    return _launch(gated_backward_kernel, tensors, shapes, (gate_silu,), (PARTS,), target)


def gated_recompute_launch(
    dz_d: Tensor, down: Tensor, h: Tensor, gate: Tensor, up: Tensor,
    dg: Tensor, du: Tensor, p: Tensor, gate_silu: bool, target: Target,
) -> Launch:  # fmt: skip
    """dg, du and p (n, F) of dz_d (n, r_d), A (r_d, F), h (n, 2 r) and the weights (F, r)."""
    tensors = (dz_d, down, h, gate, up, dg, du, p)
    shapes = (h.shape[0], *gate.shape, down.shape[0])
    return _launch(gated_recompute_kernel, tensors, shapes, (gate_silu,), (PARTS,), target)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    shapes: tuple[int, ...],
    switches: tuple[bool, ...],
    parts: tuple[int, ...],
    target: Target,
) -> Launch:
    name = kernel.__name__.removesuffix("_kernel")
    config = choose(name, target, tensors[0].dtype)
    blocks = (config.block_m, config.block_n, config.block_k)
    return Launch(
        kernel=kernel,
        grid=(programs(config, target, shapes[0], shapes[1]),),
        tensors=tensors,
        numbers=(*shapes, *switches, *blocks, GROUP_M, *parts),
        config=config,
    )
