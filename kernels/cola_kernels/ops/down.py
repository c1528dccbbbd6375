"""`down`: z = x [A_1; ...; A_P]^T, all projections of one input in one GEMM.

Shapes: n rows, d input width, R = r_1 + ... + r_P. See docs/kernels.md for what it costs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cola_kernels.composed import save_inputs, weight_gradients
from cola_kernels.gemm import aligned, empty_aligned, gemm
from cola_kernels.launch import Launch, unit_stride
from cola_kernels.support import UnsupportedError, architecture, check, check_matrices, flat


def down(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`reference.down` on Triton kernels: (..., d) and weights (r_i, d) -> (..., sum of r_i).

    The backward pass keeps x and the weights themselves, never their concatenation.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take.
    """
    z: Tensor = torch.ops.cola_kernels.down(flat("down", "x", x), list(weights))
    return z.unflatten(0, x.shape[:-1])


def stack(weights: Sequence[Tensor]) -> Tensor:
    """The weights (r_i, d) as one (R, d), its rows aligned: for the length of one op only."""
    if len(weights) == 1:
        return aligned(weights[0])
    rows = sum(weight.shape[0] for weight in weights)
    return torch.cat(list(weights), out=empty_aligned(weights[0], rows, weights[0].shape[1]))


def down_launch(x: Tensor, weight: Tensor, z: Tensor, arch: str) -> Launch:
    """z (n, R) = x (n, d) weight^T."""
    return gemm(unit_stride(x), weight.t(), z, arch)


@torch.library.custom_op("cola_kernels::down", mutates_args=())
def _down(x: Tensor, weights: list[Tensor]) -> Tensor:
    z = _down_fake(x, weights)
    down_launch(x, stack(weights), z, architecture("down", x.device)).run()
    return z


@_down.register_fake
def _down_fake(x: Tensor, weights: list[Tensor]) -> Tensor:
    if not weights:
        raise UnsupportedError("cola_kernels.down: weights is empty; give at least one")
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    check_matrices("down", named)
    shapes = {name: (weight.shape[0], x.shape[1]) for name, weight in named.items()}
    check("down", {"x": x, **named}, {"x": tuple(x.shape), **shapes})
    return x.new_empty(x.shape[0], sum(weight.shape[0] for weight in weights))


@torch.library.custom_op("cola_kernels::down_backward", mutates_args=())
def _down_backward(dz: Tensor, weights: list[Tensor]) -> Tensor:
    """dx (n, d) = dz (n, R) [A_1; ...; A_P]: a plain GEMM, with nothing to fuse."""
    return torch.mm(dz, stack(weights), out=_down_backward_fake(dz, weights))


@_down_backward.register_fake
def _down_backward_fake(dz: Tensor, weights: list[Tensor]) -> Tensor:
    return empty_aligned(dz, dz.shape[0], weights[0].shape[1])


def _backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
    x, *weights = ctx.saved_tensors
    needs_x, needs_weights = ctx.needs_input_grad
    dx = torch.ops.cola_kernels.down_backward(dz, weights) if needs_x else None
    return dx, weight_gradients(x, weights, dz, needs_weights)


_down.register_autograd(_backward, setup_context=save_inputs)


@register_flop_formula(torch.ops.cola_kernels.down)
def _down_flops(x: Any, weights: Any, **_: Any) -> int:
    return sum(2 * x[0] * x[1] * weight[0] for weight in weights)


@register_flop_formula(torch.ops.cola_kernels.down_backward)
def _down_backward_flops(dz: Any, weights: Any, **_: Any) -> int:
    return sum(2 * dz[0] * weight[0] * weight[1] for weight in weights)
