"""`up`: y_i = s(z_i) B_i^T; and `up_add`, which adds the residual in the epilogue of one.

Shapes: n rows (any leading axes), r_i bottleneck widths side by side in z, d_i output widths. The
backward pass keeps z and the weights; s(z) is made anew. Only `up_add` is a Triton kernel: the
rest is GEMMs with nothing but passes of rank r around them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_kernels.gemm import up_add_launch
from cola_kernels.launch import padded, rounded
from cola_kernels.register import below_autograd, product_flops, register
from cola_kernels.support import (
    Checked,
    check,
    check_matrices,
    check_residual,
    check_rows,
    signature,
    target,
)


def up(
    z: Tensor,
    weights: Sequence[Tensor],
    residual: Tensor | None = None,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """`reference.up`: (..., sum of r_i), weights (d_i, r_i) -> (..., d_i) each.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take; a residual with
            more than one weight.
    """
    if residual is None:
        return tuple(torch.ops.cola_kernels.up(z, list(weights), activation))
    check_residual("up", weights, residual)
    return (torch.ops.cola_kernels.up_add(z, weights[0], residual, activation),)


def split(z: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Views of each projection's columns."""
    if len(weights) == 1:
        return (z,)
    return z.split([weight.shape[1] for weight in weights], dim=-1)


def _up(z: Tensor, weights: list[Tensor], activation: bool) -> list[Tensor]:
    h = (F.silu(z) if activation else z).flatten(0, -2)
    pairs = zip(split(h, weights), weights, strict=True)
    return [(h_i @ weight.t()).view(*z.shape[:-1], -1) for h_i, weight in pairs]


def _up_fake(z: Tensor, weights: list[Tensor], activation: bool) -> list[Tensor]:
    return [z.new_empty(*z.shape[:-1], weight.shape[0]) for weight in weights]


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: bool, z: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(z, *weights)
        ctx.activation = activation
        with below_autograd():
            return tuple(UP(z, list(weights), activation))

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        z, *weights = ctx.saved_tensors
        _, needs_z, *needs_weights = ctx.needs_input_grad
        return None, *gradients(list(dys), z, weights, ctx.activation, needs_z, needs_weights)


UP = register(
    "up(Tensor z, Tensor[] weights, bool activation) -> Tensor[]",
    _up,
    fake=_up_fake,
    flops=product_flops,
    autograd=lambda z, weights, activation: list(_Up.apply(activation, z, *weights)),
    decomposition=_up,
)


def _up_backward(dys: list[Tensor], z: Tensor, weights: list[Tensor], activation: bool) -> Tensor:
    """dz_i = (dy_i B_i) * s'(z_i), side by side, each product where it belongs."""
    dh = torch.empty_like(z, memory_format=torch.contiguous_format)
    flat = dh.view(-1, dh.shape[-1])
    for dy, weight, dh_i in zip(dys, weights, split(flat, weights), strict=True):
        torch.mm(dy.reshape(-1, dy.shape[-1]), weight, out=dh_i)
    return torch.ops.aten.silu_backward(dh, z) if activation else dh


def _up_backward_plain(
    dys: list[Tensor], z: Tensor, weights: list[Tensor], activation: bool
) -> Tensor:
    pairs = zip(dys, weights, strict=True)
    dh = torch.cat([dy.flatten(0, -2) @ weight for dy, weight in pairs], dim=-1).view(z.shape)
    return torch.ops.aten.silu_backward(dh, z) if activation else dh


UP_BACKWARD = register(
    "up_backward(Tensor[] dys, Tensor z, Tensor[] weights, bool activation) -> Tensor",
    _up_backward,
    fake=lambda dys, z, weights, activation: z.new_empty(z.shape),
    flops=lambda dys, z, weights, _: product_flops(z, weights),
    decomposition=_up_backward_plain,
)


@cache
def _check_up_add(z: Checked, weight: Checked, residual: Checked) -> None:
    check_rows("up_add", "z", z)
    check_matrices("up_add", {"weight": weight})
    d, r = weight.shape
    tensors = {"z": z, "weight": weight, "residual": residual}
    shapes = {"z": (*z.shape[:-1], r), "weight": (d, r), "residual": (*z.shape[:-1], d)}
    check("up_add", tensors, shapes)


def _up_add(z: Tensor, weight: Tensor, residual: Tensor, activation: bool) -> Tensor:
    _check_up_add(signature(z), signature(weight), signature(residual))
    d, r = weight.shape
    h = padded((F.silu(z) if activation else z).reshape(-1, r))
    added = padded(residual.reshape(-1, d))
    y = z.new_empty(*z.shape[:-1], d)  # no view: it is a block's output, which FSDP hooks
    rows = y.view(-1, d)
    out = rows if d % 16 == 0 else z.new_empty(len(rows), rounded(d))
    up_add_launch(h, padded(weight, rows=True), added, out, target("up_add", z.device)).run()
    if out is not rows:
        rows.copy_(out[:, :d])
    return y


def _up_add_fake(z: Tensor, weight: Tensor, residual: Tensor, activation: bool) -> Tensor:
    _check_up_add.__wrapped__(z, weight, residual)
    return z.new_empty(*z.shape[:-1], weight.shape[0])


class _UpAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, residual: Tensor, activation: bool) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.activation = activation
        with below_autograd():
            return UP_ADD(z, weight, residual, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        needs_z, needs_weight, *_ = ctx.needs_input_grad
        dz, dw = gradients([dy], z, [weight], ctx.activation, needs_z, [needs_weight])
        return dz, dw, dy, None


UP_ADD = register(
    "up_add(Tensor z, Tensor weight, Tensor residual, bool activation) -> Tensor",
    _up_add,
    fake=_up_add_fake,
    flops=lambda z, weight, *_: product_flops(z, [weight]),
    autograd=lambda *args: _UpAdd.apply(*args),
)


def gradients(
    dys: list[Tensor],
    z: Tensor,
    weights: list[Tensor],
    activation: bool,
    needs_z: bool,
    needs_weights: Sequence[bool],
) -> list[Tensor | None]:
    """dz (..., sum of r_i) and each dB_i (d_i, r_i), of dy_i (..., d_i)."""
    dz = torch.ops.cola_kernels.up_backward(dys, z, weights, activation) if needs_z else None
    dw: list[Tensor | None] = [None] * len(weights)
    if any(needs_weights):
        h = (F.silu(z) if activation else z).flatten(0, -2)
        dw = [dy.flatten(0, -2).t() @ h_i for dy, h_i in zip(dys, split(h, weights), strict=True)]
    return [dz, *dw]
