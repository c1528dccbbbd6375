"""`gated_down`: z_d = (f(s(z_g) B_g^T) * (s(z_u) B_u^T)) A^T, with no d_ff-wide tensor kept.

Shapes: n rows, r bottleneck width (z is (n, 2 r), gate's half first), F = d_ff, r_d the width of
z_d. Forward: one kernel writes p (n, F), a plain GEMM reads it, and it is dropped. The backward
pass keeps z and the three weights; one kernel recomputes the tiles of g and u and writes dg, du
and p, the rest is GEMMs. docs/kernels.md has the count behind that choice.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import cola_kernels.ops.down
import cola_kernels.ops.up  # noqa: F401  (they register down_backward and up_backward)
from cola_kernels.gated import gated_up_backward_launch, gated_up_launch
from cola_kernels.gemm import aligned, empty_aligned
from cola_kernels.launch import unit_stride
from cola_kernels.support import architecture, check, check_matrices, flat


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.gated_down` on Triton kernels: (..., 2 r), two (F, r), (r_d, F) -> (..., r_d).

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take.
    """
    rows = z.shape[:-1]
    z_d: Tensor = torch.ops.cola_kernels.gated_down(
        flat("gated_down", "z", z), gate, up, down, activation, gate_silu
    )
    return z_d.unflatten(0, rows)


@torch.library.custom_op("cola_kernels::gated_down", mutates_args=())
def _gated_down(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    z_d = _gated_down_fake(z, gate, up, down, activation, gate_silu)
    p = empty_aligned(z, z.shape[0], gate.shape[0])
    h = unit_stride(F.silu(z) if activation else z)
    arch = architecture("gated_down", z.device)
    gated_up_launch(h, unit_stride(gate), unit_stride(up), p, gate_silu, arch).run()
    return torch.mm(p, aligned(down).t(), out=z_d)


@_gated_down.register_fake
def _gated_down_fake(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    check_matrices("gated_down", {"gate": gate, "up": up, "down": down})
    d_ff, r = gate.shape
    check(
        "gated_down",
        {"z": z, "gate": gate, "up": up, "down": down},
        {
            "z": (z.shape[0], 2 * r),
            "gate": (d_ff, r),
            "up": (d_ff, r),
            "down": (down.shape[0], d_ff),
        },
    )
    return z.new_empty(z.shape[0], down.shape[0])


@torch.library.custom_op("cola_kernels::gated_down_backward", mutates_args=())
def _gated_down_backward(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dg, du, p = _gated_down_backward_fake(dp, h, gate, up, gate_silu)
    dp, h, gate, up = (unit_stride(t) for t in (dp, h, gate, up))
    arch = architecture("gated_down_backward", h.device)
    gated_up_backward_launch(dp, h, gate, up, dg, du, p, gate_silu, arch).run()
    return dg, du, p


@_gated_down_backward.register_fake
def _gated_down_backward_fake(
    dp: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_aligned(dp, *dp.shape), empty_aligned(dp, *dp.shape), empty_aligned(dp, *dp.shape)


def _setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, bool, bool], output: Tensor
) -> None:
    *tensors, ctx.activation, ctx.gate_silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dz_d: Tensor) -> tuple[Tensor | None, ...]:
    z, gate, up, down = ctx.saved_tensors
    needs_z, needs_gate, needs_up, needs_down, *_ = ctx.needs_input_grad
    ops = torch.ops.cola_kernels
    h = F.silu(z) if ctx.activation else z
    h_g, h_u = h.chunk(2, dim=1)
    # dp, p, dg and du are d_ff wide: each goes as soon as nothing needs it
    dp = ops.down_backward(dz_d, [down])
    dg, du, p = ops.gated_down_backward(dp, h, gate, up, ctx.gate_silu)
    del dp
    ddown = dz_d.t() @ p if needs_down else None
    del p
    dz = ops.up_backward([dg, du], z, [gate, up], ctx.activation) if needs_z else None
    dgate = dg.t() @ h_g if needs_gate else None
    del dg
    dup = du.t() @ h_u if needs_up else None
    return dz, dgate, dup, ddown, None, None


_gated_down.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.cola_kernels.gated_down)
def _gated_down_flops(z: Any, gate: Any, up: Any, down: Any, *_: Any, **__: Any) -> int:
    return 4 * z[0] * gate[0] * gate[1] + 2 * z[0] * down[0] * down[1]


@register_flop_formula(torch.ops.cola_kernels.gated_down_backward)
def _gated_down_backward_flops(dp: Any, h: Any, gate: Any, *_: Any, **__: Any) -> int:
    return 4 * h[0] * gate[0] * gate[1]
