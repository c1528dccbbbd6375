"""The ops for `train.precision=fp8`: `composed`'s functions, with fp8 products in them.

y = x W^T multiplies x and W in e4m3; so does the input's gradient dx = dy W. The weights'
gradient dW = dy^T x is `composed`'s, in bf16 of what was not rounded: an fp8 matmul on Hopper wants
both operands along the sum's axis, and x and dy would have to be transposed for it. Tensors between
ops are bf16, sums are fp32. docs/kernels.md has the recipe and its reasons.

Shapes: n rows (any leading axes), k input width, m = m_1 + ... + m_P output widths.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cola_kernels.composed import gated, stack, weight_gradients
from cola_kernels.names import FP8_RANK_R_OPS as RANK_R_OPS
from cola_kernels.names import FP8_RESIDUAL_OPS as RESIDUAL_OPS
from cola_kernels.register import product_flops
from cola_kernels.support import UnsupportedError, check_residual

__all__ = ["RANK_R_OPS", "RESIDUAL_OPS", "down", "gated", "gated_down", "linear", "up"]

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALED = 1e-30  # of a row's largest: below, the row becomes zeros
STEP = 16  # an fp8 matmul's widths are multiples of it


def linear(
    x: Tensor, weights: Sequence[Tensor], residual: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`composed.linear` in fp8: (..., k) and weights (m_i, k), bf16 -> one (..., m_i) for each.

    Raises:
        UnsupportedError: a residual with more than one weight; another dtype; a width that is no
            multiple of 16.
    """
    check_residual("linear", weights, residual)
    if len(weights) == 1:
        return (_one(x, weights[0], residual),)
    y = _product("linear", x, weights)
    return y.split([weight.shape[0] for weight in weights], dim=-1)


def down(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`reference.down` in fp8: (..., d) and weights (r_i, d), bf16 -> (..., sum of r_i).

    Raises:
        UnsupportedError: another dtype; a width that is no multiple of 16.
    """
    return _product("down", x, weights)


def up(
    z: Tensor,
    weights: Sequence[Tensor],
    residual: Tensor | None = None,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """`reference.up` in fp8: (..., sum of r_i) and weights (d_i, r_i), bf16 -> (..., d_i) each.

    Raises:
        UnsupportedError: as `linear`.
    """
    h = F.silu(z) if activation else z
    ranks = [weight.shape[1] for weight in weights]
    check_residual("up", weights, residual)
    parts = zip(h.split(ranks, dim=-1), weights, strict=True)
    return tuple(_one(h_i, B, residual) for h_i, B in parts)


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.gated_down` in fp8: (..., r_g + r_u), (F, r_g), (F, r_u), (r_d, F), bf16
    -> (..., r_d).

    Raises:
        UnsupportedError: as `down`.
    """
    h = F.silu(z) if activation else z
    h_g, h_u = h.split([gate.shape[1], up.shape[1]], dim=-1)
    g, u = _product("linear", h_g, [gate]), _product("linear", h_u, [up])
    return _product("down", gated(g, u, gate_silu), [down])


def row_scales(x: Tensor) -> Tensor:
    """(..., 1) fp32, the least power of two by which a row of x can be divided to fit in e4m3.

    Dividing by a power of two changes no mantissa: a number is rounded once, to e4m3, and what is
    made of it in bf16 (`dequantised`) is exact. It costs at most one of the 15 powers of two
    that e4m3 spans. A row that is not finite gives a scale that is not.
    """
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST_SCALED)
    return torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))


def quantised(x: Tensor, scales: Tensor) -> Tensor:
    """x / scales in e4m3, nothing of it above the largest number; x (..., k), scales (..., 1)."""
    return (x * scales.reciprocal().to(x.dtype)).to(E4M3)


def dequantised(q: Tensor, scales: Tensor) -> Tensor:
    """q * scales in bf16, exactly."""
    return q.to(torch.bfloat16) * scales.to(torch.bfloat16)


def scaled_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, fast: bool) -> Tensor:
    """a b^T in bf16 by the hardware: a (n, k) and b (m, k) in e4m3, scales (n, 1) and (m, 1).

    fast: sums in the tensor core's own registers, which keep fewer bits than fp32.
    """
    return torch._scaled_mm(
        a, b.t(), scale_a=a_scales, scale_b=b_scales.t(), out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )  # fmt: skip


def emulated_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """The same of bf16 operands, for a CPU: equal to the order of the sums."""
    return F.linear(dequantised(a, a_scales), dequantised(b, b_scales))


def _scaled(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, fast: bool) -> Tensor:
    if a.device.type == "cpu":
        return emulated_product(a, a_scales, b, b_scales)
    return scaled_product(a, a_scales, b, b_scales, fast)


def _one(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """x W^T, plus `residual` if there is one."""
    return _product("linear" if residual is None else "linear_add", x, [weight], residual)


def _product(
    op: str, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None = None
) -> Tensor:
    """x [W_1; ...; W_P]^T by the op of that name, once its operands are known to suit."""
    for name, tensor in (("x", x), *((f"weights[{i}]", of) for i, of in enumerate(weights))):
        if tensor.dtype != torch.bfloat16:
            raise UnsupportedError(
                f"cola_kernels.fp8.{op}: {name} is {tensor.dtype}; fp8 rounds bfloat16"
            )
        widths = tensor.shape[-1:] if name == "x" else tensor.shape  # rows may be any number
        if any(width % STEP for width in widths):
            raise UnsupportedError(
                f"cola_kernels.fp8.{op}: {name} has shape {tuple(tensor.shape)}; fp8 needs widths "
                f"that are multiples of {STEP}"
            )
    y: Tensor = PRODUCTS[op](x, list(weights), residual)
    return y


def _forward(x: Tensor, weights: list[Tensor], residual: Tensor | None) -> Tensor:
    rows, weight = x.flatten(0, -2), stack(weights)
    x_scales, w_scales = row_scales(rows), row_scales(weight)
    y = _scaled(
        quantised(rows, x_scales), x_scales, quantised(weight, w_scales), w_scales, fast=True
    ).unflatten(0, x.shape[:-1])
    return y if residual is None else residual + y


def _setup(ctx: Any, inputs: tuple[Tensor, list[Tensor], Tensor | None], output: Tensor) -> None:
    x, weights, _ = inputs
    ctx.save_for_backward(x, *weights)  # themselves, in bf16: what `composed` keeps


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, list[Tensor | None], Tensor | None]:
    x, *weights = ctx.saved_tensors
    needs_x, needs_weights, needs_residual = ctx.needs_input_grad
    rows, dx = dy.flatten(0, -2), None
    if needs_x:
        # W is s_m q_m in its rows: in a sum over them s_m cannot be taken out, so dy takes it
        # before it is rounded itself
        w_scales = row_scales(stack(weights))
        scaled = rows * w_scales.t().to(rows.dtype)
        scales = row_scales(scaled)
        dx = _input_gradient(quantised(scaled, scales), scales, weights, w_scales)
        dx = dx.unflatten(0, x.shape[:-1])
    dweights = weight_gradients(dy, x, weights, needs_weights)
    return dx, dweights, dy if needs_residual else None


def _registered(name: str) -> Any:
    """`_forward` as an op, into which torch.compile sees, so that it fuses the casts with what is
    before them. Selective checkpointing sees its name. (triton_op is torch's name for such an
    op; there is no Triton in it.)"""
    whole = f"cola_kernels::{name}"
    torch.library.triton_op(whole, _forward, mutates_args=())
    torch.library.register_autograd(whole, _backward, setup_context=_setup)
    op = getattr(torch.ops.cola_kernels, name)
    register_flop_formula(op)(product_flops)
    return op


PRODUCTS = {name: _registered(f"fp8_{name}") for name in ("linear", "linear_add", "down")}


# Into this op torch.compile must not see: it would find the rounded weights of the forward pass in
# it, and keep them, gathered as they are, until the backward pass.
@torch.library.custom_op("cola_kernels::fp8_input_gradient", mutates_args=())
def _input_gradient(dy: Tensor, scales: Tensor, weights: list[Tensor], w_scales: Tensor) -> Tensor:
    """dx (n, k) = dy [W_1; ...; W_P], dy (n, m) in e4m3 with scales (n, 1). w_scales (m, 1) are the
    weights', and are in dy already."""
    w = quantised(stack(weights), w_scales).t().contiguous()
    return _scaled(dy, scales, w, w_scales.new_ones(w.shape[0], 1), fast=False)


@_input_gradient.register_fake
def _input_gradient_fake(
    dy: Tensor, scales: Tensor, weights: list[Tensor], w_scales: Tensor
) -> Tensor:
    return dy.new_empty(dy.shape[0], weights[0].shape[1], dtype=torch.bfloat16)


@register_flop_formula(torch.ops.cola_kernels.fp8_input_gradient)
def _input_gradient_flops(dy: Any, scales: Any, weights: Any, *_: Any, **__: Any) -> int:
    return product_flops(dy, weights)
