# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""The two kernels behind `gated_down`; g = h_g B_g^T and u = h_u B_u^T never reach memory.

`gated_up` writes p = f(g) * u. `gated_up_backward` recomputes the tiles of g and u once and writes
dg, du and p, in the inputs' dtype.

Shapes: n rows, r bottleneck width, F = d_ff; h = s(z) (n, 2 r), gate's half first; B_g and B_u
(F, r); f = SiLU with GATE_SILU, else the identity.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cola_kernels.gemm import (
    GROUP_M,
    dot_tile,
    halves,
    silu_derivative,
    tile_mask,
    tile_origin,
    tile_pointers,
)
from cola_kernels.launch import Launch
from cola_kernels.tiles import choose


@triton.jit
def gated_up_kernel(
    h_ptr, gate_ptr, up_ptr, p_ptr, M, N, K, PADDED_N, stride_h, stride_gate, stride_up, stride_p,
    GATE_SILU: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    row, column = tile_origin(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    dtype = p_ptr.dtype.element_ty
    # one after the other, g waiting in the inputs' dtype: two fp32 accumulators would halve the
    # tile, and with it the work done for each byte from L2
    g = dot_tile(
        h_ptr, gate_ptr, row, column, M, N, K, stride_h, stride_gate,
        True, False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if GATE_SILU:
        g *= tl.sigmoid(g)
    g = g.to(dtype)
    u = dot_tile(
        h_ptr + K, up_ptr, row, column, M, N, K, stride_h, stride_up,
        True, False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    ps = tile_pointers(p_ptr, row, column, stride_p, BLOCK_M, BLOCK_N)
    mask = tile_mask(row, column, M, PADDED_N, BLOCK_M, BLOCK_N)
    tl.store(ps, (g.to(tl.float32) * u).to(dtype), mask=mask)


@triton.jit
def store_gradients(
    g, u, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column, M, N, PADDED_N, stride_dp, stride_d,
    GATE_SILU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """dg = dp u f'(g), du = dp f(g) and p = f(g) u, PARTS of a tile one after the other (see
    store_tile)."""
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        g_left, g_right = halves(g, BLOCK_M, BLOCK_N)
        u_left, u_right = halves(u, BLOCK_M, BLOCK_N)
        store_gradients(g_left, u_left, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column,
                        M, N, PADDED_N, stride_dp, stride_d,
                        GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
        store_gradients(g_right, u_right, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column + HALF,
                        M, N, PADDED_N, stride_dp, stride_d,
                        GATE_SILU, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
    else:
        dtype = dg_ptr.dtype.element_ty
        mask = tile_mask(row, column, M, N, BLOCK_M, BLOCK_N)
        dps = tile_pointers(dp_ptr, row, column, stride_dp, BLOCK_M, BLOCK_N)
        dp = tl.load(dps, mask=mask, other=0.0).to(tl.float32)
        g = g.to(tl.float32)
        dg, f = dp * u, g
        if GATE_SILU:
            dg *= silu_derivative(g)
            f *= tl.sigmoid(g)
        mask = tile_mask(row, column, M, PADDED_N, BLOCK_M, BLOCK_N)
        dgs = tile_pointers(dg_ptr, row, column, stride_d, BLOCK_M, BLOCK_N)
        dus = tile_pointers(du_ptr, row, column, stride_d, BLOCK_M, BLOCK_N)
        tl.store(dgs, dg.to(dtype), mask=mask)
        tl.store(dus, (dp * f).to(dtype), mask=mask)
        ps = tile_pointers(p_ptr, row, column, stride_d, BLOCK_M, BLOCK_N)
        tl.store(ps, (f * u).to(dtype), mask=mask)


@triton.jit
def gated_up_backward_kernel(
    h_ptr, gate_ptr, up_ptr, dp_ptr, dg_ptr, du_ptr, p_ptr, M, N, K, PADDED_N,
    stride_h, stride_gate, stride_up, stride_dp, stride_d,
    GATE_SILU: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    row, column = tile_origin(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    dtype = dg_ptr.dtype.element_ty
    g = dot_tile(
        h_ptr, gate_ptr, row, column, M, N, K, stride_h, stride_gate,
        True, False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    ).to(dtype)  # fmt: skip
    u = dot_tile(
        h_ptr + K, up_ptr, row, column, M, N, K, stride_h, stride_up,
        True, False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_gradients(
        g, u, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column, M, N, PADDED_N, stride_dp, stride_d,
        GATE_SILU, BLOCK_M, BLOCK_N, 4,
    )  # fmt: skip


def gated_up_launch(
    h: Tensor, gate: Tensor, up: Tensor, p: Tensor, gate_silu: bool, arch: str
) -> Launch:
    """p (n, F), from `empty_aligned`, of h (n, 2 r)."""
    tensors = {"h_ptr": h, "gate_ptr": gate, "up_ptr": up, "p_ptr": p}
    strides = {"stride_h": h, "stride_gate": gate, "stride_up": up, "stride_p": p}
    return _launch(gated_up_kernel, "gated_up", tensors, strides, p, gate_silu, arch)


def gated_up_backward_launch(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, dg: Tensor, du: Tensor, p: Tensor,
    gate_silu: bool, arch: str,
) -> Launch:  # fmt: skip
    """dg, du and p (n, F), from `empty_aligned`, of dp (n, F) and h (n, 2 r)."""
    tensors = {"h_ptr": h, "gate_ptr": gate, "up_ptr": up}
    tensors |= {"dp_ptr": dp, "dg_ptr": dg, "du_ptr": du, "p_ptr": p}
    strides = {"stride_h": h, "stride_gate": gate, "stride_up": up, "stride_dp": dp, "stride_d": dg}
    name = "gated_up_backward"
    return _launch(gated_up_backward_kernel, name, tensors, strides, dg, gate_silu, arch)


def _launch(
    kernel: Any,
    name: str,
    tensors: dict[str, Tensor],
    strides: dict[str, Tensor],
    out: Tensor,
    gate_silu: bool,
    arch: str,
) -> Launch:
    (M, N), K = out.shape, tensors["gate_ptr"].shape[1]
    config = choose(name, arch, out.dtype, N)
    return Launch(
        kernel=kernel,
        grid=(triton.cdiv(M, config.block_m) * triton.cdiv(N, config.block_n),),
        arguments={
            **tensors,
            "M": M,
            "N": N,
            "K": K,
            # the padding is stored too: a bound that is a multiple of 16 keeps the stores wide
            "PADDED_N": out.stride(0),
            **{name: tensor.stride(0) for name, tensor in strides.items()},
            "GATE_SILU": gate_silu,
            "EVEN_K": K % config.block_k == 0,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "GROUP_M": GROUP_M,
        },
        config=config,
    )
