# mypy: allow-untyped-defs, allow-untyped-decorators
# (the Triton kernels, whose arguments Triton types)
"""`gated_up`: p = f(s(z_g) B_g^T) * (s(z_u) B_u^T) in one kernel; g and u never reach memory.

Shapes: n rows, r bottleneck width (z is (n, 2 r), gate's half first), F = d_ff. The backward pass
keeps z and the two weights. It recomputes the tiles of g and u once and writes dg and du, in the
inputs' dtype; the rest is GEMMs over those two. docs/kernels.md has the count behind that choice.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import cola_kernels.ops.up  # noqa: F401  (registers up_backward)
from cola_kernels.gemm import (
    GROUP_M,
    dot_tile,
    empty_aligned,
    halves,
    silu_derivative,
    tile_mask,
    tile_origin,
    tile_pointers,
)
from cola_kernels.launch import Launch, unit_stride
from cola_kernels.support import architecture, check, check_matrices, flat
from cola_kernels.tiles import choose


def gated_up(
    z: Tensor, gate: Tensor, up: Tensor, activation: bool = True, gate_silu: bool = False
) -> Tensor:
    """`reference.gated_up` on Triton kernels: (..., 2 r) and two (F, r) -> (..., F).

    The rows of the result lie a multiple of 16 elements apart, so that with an odd F (5461) the
    next op's loads stay aligned: a view, contiguous only if F is such a multiple.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take.
    """
    p: Tensor = torch.ops.cola_kernels.gated_up(
        flat("gated_up", "z", z), gate, up, activation, gate_silu
    )
    return p.unflatten(0, z.shape[:-1])


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
    GATE_SILU: tl.constexpr, WRITE_P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """dg = dp u f'(g), du = dp f(g) and with WRITE_P p = f(g) u, PARTS of a tile one after the
    other (see store_tile)."""
    if PARTS > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        g_left, g_right = halves(g, BLOCK_M, BLOCK_N)
        u_left, u_right = halves(u, BLOCK_M, BLOCK_N)
        store_gradients(g_left, u_left, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column,
                        M, N, PADDED_N, stride_dp, stride_d,
                        GATE_SILU, WRITE_P, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
        store_gradients(g_right, u_right, dp_ptr, dg_ptr, du_ptr, p_ptr, row, column + HALF,
                        M, N, PADDED_N, stride_dp, stride_d,
                        GATE_SILU, WRITE_P, BLOCK_M, HALF, PARTS // 2)  # fmt: skip
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
        if WRITE_P:
            ps = tile_pointers(p_ptr, row, column, stride_d, BLOCK_M, BLOCK_N)
            tl.store(ps, (f * u).to(dtype), mask=mask)


@triton.jit
def gated_up_backward_kernel(
    h_ptr, gate_ptr, up_ptr, dp_ptr, dg_ptr, du_ptr, p_ptr, M, N, K, PADDED_N,
    stride_h, stride_gate, stride_up, stride_dp, stride_d,
    GATE_SILU: tl.constexpr, WRITE_P: tl.constexpr, EVEN_K: tl.constexpr,
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
        GATE_SILU, WRITE_P, BLOCK_M, BLOCK_N, 4,
    )  # fmt: skip


def gated_up_launch(
    h: Tensor, gate: Tensor, up: Tensor, p: Tensor, gate_silu: bool, arch: str
) -> Launch:
    """p (n, F), from `empty_aligned`, of h (n, 2 r)."""
    tensors = {"h_ptr": h, "gate_ptr": gate, "up_ptr": up, "p_ptr": p}
    strides = {"stride_h": h, "stride_gate": gate, "stride_up": up, "stride_p": p}
    flags = {"GATE_SILU": gate_silu}
    return _launch(gated_up_kernel, "gated_up", tensors, strides, p, flags, arch)


def gated_up_backward_launch(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, dg: Tensor, du: Tensor, p: Tensor | None,
    gate_silu: bool, arch: str,
) -> Launch:  # fmt: skip
    """dg, du and unless it is None p (n, F), from `empty_aligned`, of dp (n, F) and h (n, 2 r)."""
    tensors = {"h_ptr": h, "gate_ptr": gate, "up_ptr": up}
    tensors |= {"dp_ptr": dp, "dg_ptr": dg, "du_ptr": du, "p_ptr": dg if p is None else p}
    strides = {"stride_h": h, "stride_gate": gate, "stride_up": up, "stride_dp": dp, "stride_d": dg}
    flags = {"GATE_SILU": gate_silu, "WRITE_P": p is not None}
    return _launch(gated_up_backward_kernel, "gated_up_backward", tensors, strides, dg, flags, arch)


def _launch(
    kernel: Any,
    name: str,
    tensors: dict[str, Tensor],
    strides: dict[str, Tensor],
    out: Tensor,
    flags: dict[str, bool],
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
            **flags,
            "EVEN_K": K % config.block_k == 0,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "GROUP_M": GROUP_M,
        },
        config=config,
    )


@torch.library.custom_op("cola_kernels::gated_up", mutates_args=())
def _gated_up(z: Tensor, gate: Tensor, up: Tensor, activation: bool, gate_silu: bool) -> Tensor:
    p = _gated_up_fake(z, gate, up, activation, gate_silu)
    h = F.silu(z) if activation else z
    h, gate, up = unit_stride(h), unit_stride(gate), unit_stride(up)
    gated_up_launch(h, gate, up, p, gate_silu, architecture("gated_up", z.device)).run()
    return p


@_gated_up.register_fake
def _gated_up_fake(
    z: Tensor, gate: Tensor, up: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    check_matrices("gated_up", {"gate": gate, "up": up})
    d_ff, r = gate.shape
    check(
        "gated_up",
        {"z": z, "gate": gate, "up": up},
        {"z": (z.shape[0], 2 * r), "gate": (d_ff, r), "up": (d_ff, r)},
    )
    return empty_aligned(z, z.shape[0], d_ff)


@torch.library.custom_op("cola_kernels::gated_up_backward", mutates_args=())
def _gated_up_backward(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool
) -> tuple[Tensor, Tensor]:
    dg, du = _gated_up_backward_fake(dp, h, gate, up, gate_silu)
    dp, h, gate, up = (unit_stride(t) for t in (dp, h, gate, up))
    arch = architecture("gated_up_backward", h.device)
    gated_up_backward_launch(dp, h, gate, up, dg, du, None, gate_silu, arch).run()
    return dg, du


@_gated_up_backward.register_fake
def _gated_up_backward_fake(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool
) -> tuple[Tensor, Tensor]:
    return empty_aligned(dp, *dp.shape), empty_aligned(dp, *dp.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool, bool], output: Tensor) -> None:
    z, gate, up, ctx.activation, ctx.gate_silu = inputs
    ctx.save_for_backward(z, gate, up)


def _backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
    z, gate, up = ctx.saved_tensors
    needs_z, needs_gate, needs_up, *_ = ctx.needs_input_grad
    ops = torch.ops.cola_kernels
    h = F.silu(z) if ctx.activation else z
    h_g, h_u = h.chunk(2, dim=1)
    dg, du = ops.gated_up_backward(dp, h, gate, up, ctx.gate_silu)
    dz = ops.up_backward([dg, du], z, [gate, up], ctx.activation) if needs_z else None
    dgate = dg.t() @ h_g if needs_gate else None
    dup = du.t() @ h_u if needs_up else None
    return dz, dgate, dup, None, None


_gated_up.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.cola_kernels.gated_up)
def _gated_up_flops(z: Any, gate: Any, *_: Any, **__: Any) -> int:
    return 4 * z[0] * gate[0] * gate[1]


@register_flop_formula(torch.ops.cola_kernels.gated_up_backward)
def _gated_up_backward_flops(dp: Any, h: Any, gate: Any, *_: Any, **__: Any) -> int:
    return 4 * h[0] * gate[0] * gate[1]
