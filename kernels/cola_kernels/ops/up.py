"""`up`: y_i = s(z_i) B_i^T; and `up_add`, which adds the residual in the epilogue of one.

Shapes: n rows, r_i bottleneck widths side by side in z, d_i output widths. The backward pass keeps
z and the weights; s(z) is made anew, and dz = (dy B) * s'(z) comes out of one kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cola_kernels.gemm import gemm
from cola_kernels.launch import Launch, unit_stride
from cola_kernels.support import UnsupportedError, architecture, check, check_matrices, flat


def up(
    z: Tensor,
    weights: Sequence[Tensor],
    residual: Tensor | None = None,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """`reference.up` on Triton kernels: (..., sum of r_i), weights (d_i, r_i) -> (..., d_i) each.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take; a residual with
            more than one weight.
    """
    rows = z.shape[:-1]
    ops = torch.ops.cola_kernels
    if residual is None:
        ys = ops.up(flat("up", "z", z), list(weights), activation)
        return tuple(y.unflatten(0, rows) for y in ys)
    if len(weights) != 1:
        raise UnsupportedError(
            f"cola_kernels.up: residual with {len(weights)} weights; give it one weight"
        )
    added = flat("up", "residual", residual)
    return (ops.up_add(flat("up", "z", z), weights[0], added, activation).unflatten(0, rows),)


def up_launches(
    h: Tensor, weights: Sequence[Tensor], ys: Sequence[Tensor], arch: str
) -> list[Launch]:
    """y_i (n, d_i) = h_i (n, r_i) B_i^T, one launch for each."""
    return [
        gemm(h_i, weight.t(), y, arch)
        for h_i, weight, y in zip(split(h, weights), weights, ys, strict=True)
    ]


def up_add_launch(h: Tensor, weight: Tensor, residual: Tensor, y: Tensor, arch: str) -> Launch:
    """y (n, d) = h (n, r) B^T + residual."""
    return gemm(h, weight.t(), y, arch, "add", residual)


def up_backward_launches(
    dys: Sequence[Tensor],
    z: Tensor,
    weights: Sequence[Tensor],
    activation: bool,
    dz: Tensor,
    arch: str,
) -> list[Launch]:
    """dz_i (n, r_i) = (dy_i (n, d_i) B_i) * s'(z_i), one launch for each."""
    epilogue = "silu_backward" if activation else "none"
    parts = zip(dys, weights, split(dz, weights), split(z, weights), strict=True)
    return [
        gemm(unit_stride(dy), weight, dz_i, arch, epilogue, z_i if activation else None)
        for dy, weight, dz_i, z_i in parts
    ]


def split(z: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Views of each projection's columns."""
    return list(z.split([weight.shape[1] for weight in weights], dim=1))


@torch.library.custom_op("cola_kernels::up", mutates_args=())
def _up(z: Tensor, weights: list[Tensor], activation: bool) -> list[Tensor]:
    ys = _up_fake(z, weights, activation)
    h = F.silu(z) if activation else unit_stride(z)
    weights = [unit_stride(weight) for weight in weights]
    for launch in up_launches(h, weights, ys, architecture("up", z.device)):
        launch.run()
    return ys


@_up.register_fake
def _up_fake(z: Tensor, weights: list[Tensor], activation: bool) -> list[Tensor]:
    if not weights:
        raise UnsupportedError("cola_kernels.up: weights is empty; give at least one")
    tensors = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    check_matrices("up", tensors)
    shapes = {name: tuple(weight.shape) for name, weight in tensors.items()}
    ranks = sum(weight.shape[1] for weight in weights)
    check("up", {"z": z, **tensors}, {"z": (z.shape[0], ranks), **shapes})
    return [z.new_empty(z.shape[0], weight.shape[0]) for weight in weights]


@torch.library.custom_op("cola_kernels::up_add", mutates_args=())
def _up_add(z: Tensor, weight: Tensor, residual: Tensor, activation: bool) -> Tensor:
    y = _up_add_fake(z, weight, residual, activation)
    h = F.silu(z) if activation else unit_stride(z)
    arch = architecture("up_add", z.device)
    up_add_launch(h, unit_stride(weight), unit_stride(residual), y, arch).run()
    return y


@_up_add.register_fake
def _up_add_fake(z: Tensor, weight: Tensor, residual: Tensor, activation: bool) -> Tensor:
    check_matrices("up_add", {"weight": weight})
    n, (d, r) = z.shape[0], weight.shape
    tensors = {"z": z, "weight": weight, "residual": residual}
    check("up_add", tensors, {"z": (n, r), "weight": (d, r), "residual": (n, d)})
    return z.new_empty(n, d)


@torch.library.custom_op("cola_kernels::up_backward", mutates_args=())
def _up_backward(dys: list[Tensor], z: Tensor, weights: list[Tensor], activation: bool) -> Tensor:
    dz = _up_backward_fake(dys, z, weights, activation)
    weights = [unit_stride(weight) for weight in weights]
    arch = architecture("up_backward", z.device)
    for launch in up_backward_launches(dys, unit_stride(z), weights, activation, dz, arch):
        launch.run()
    return dz


@_up_backward.register_fake
def _up_backward_fake(
    dys: list[Tensor], z: Tensor, weights: list[Tensor], activation: bool
) -> Tensor:
    return z.new_empty(z.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, list[Tensor], bool], output: list[Tensor]) -> None:
    z, weights, ctx.activation = inputs
    ctx.save_for_backward(z, *weights)


def _backward(
    ctx: Any, dys: Sequence[Tensor | None]
) -> tuple[Tensor | None, list[Tensor | None], None]:
    z, *weights = ctx.saved_tensors
    # an output that nothing used has no gradient
    full = [
        z.new_zeros(z.shape[0], weight.shape[0]) if dy is None else dy
        for dy, weight in zip(dys, weights, strict=True)
    ]
    needs_z, needs_weights, _ = ctx.needs_input_grad
    return *_gradients(full, z, weights, ctx.activation, needs_z, any(needs_weights)), None


_up.register_autograd(_backward, setup_context=_setup)


def _setup_add(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    z, weight, _, ctx.activation = inputs
    ctx.save_for_backward(z, weight)


def _backward_add(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    z, weight = ctx.saved_tensors
    needs_z, needs_weight, _, _ = ctx.needs_input_grad
    dz, (dw,) = _gradients([dy], z, [weight], ctx.activation, needs_z, needs_weight)
    return dz, dw, dy, None


_up_add.register_autograd(_backward_add, setup_context=_setup_add)


def _gradients(
    dys: list[Tensor],
    z: Tensor,
    weights: list[Tensor],
    activation: bool,
    needs_z: bool,
    needs_weights: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dz (n, sum of r_i) and dB_i (d_i, r_i), of dy_i (n, d_i)."""
    dz = None
    dw: list[Tensor | None] = [None] * len(weights)
    if needs_z:
        dz = torch.ops.cola_kernels.up_backward(dys, z, weights, activation)
    if needs_weights:
        h = F.silu(z) if activation else z
        dw = [dy.t() @ h_i for dy, h_i in zip(dys, split(h, weights), strict=True)]
    return dz, dw


@register_flop_formula(torch.ops.cola_kernels.up)
def _up_flops(z: Any, weights: Any, *_: Any, **__: Any) -> int:
    return sum(2 * z[0] * weight[0] * weight[1] for weight in weights)


@register_flop_formula(torch.ops.cola_kernels.up_add)
def _up_add_flops(z: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * z[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.cola_kernels.up_backward)
def _up_backward_flops(dys: Any, z: Any, weights: Any, *_: Any, **__: Any) -> int:
    return sum(2 * z[0] * weight[0] * weight[1] for weight in weights)
