"""The ops for `kernels=torch`: `reference`'s functions, composed of torch's own kernels.

They differ from the reference in what the backward pass keeps, and in that selective checkpointing
can tell the low-rank products from the others: `down` is an op of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from cola_kernels.names import COMPOSED_RANK_R_OPS as RANK_R_OPS
from cola_kernels.names import COMPOSED_RESIDUAL_OPS as RESIDUAL_OPS
from cola_kernels.reference import up
from cola_kernels.register import below_autograd, product_flops, register
from cola_kernels.support import check_residual

__all__ = ["RANK_R_OPS", "RESIDUAL_OPS", "down", "gated", "gated_down", "linear", "up"]


def linear(
    x: Tensor, weights: Sequence[Tensor], residual: Tensor | None = None
) -> tuple[Tensor, ...]:
    """y_i = x W_i^T: full-rank linears without bias that share their input, in one GEMM.

    Args:
        x: (..., d).
        weights: each (d_i, d).
        residual: (..., d_1), added to y_1; only with one weight.

    Returns:
        One (..., d_i) for each weight.

    Raises:
        UnsupportedError: a residual with more than one weight.
    """
    check_residual("linear", weights, residual)
    if len(weights) == 1:
        y = F.linear(x, weights[0])
        return (y if residual is None else residual + y,)
    return down(x, weights).split([weight.shape[0] for weight in weights], dim=-1)


def down(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`reference.down`: (..., d) and weights (r_i, d) -> (..., sum of r_i), in one GEMM.

    The backward pass keeps x and the weights themselves. Their concatenation would hold every
    layer's gathered weights alive, and undo what sharding saves.
    """
    z: Tensor = torch.ops.cola_kernels.down(x, list(weights))
    return z


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.gated_down`: (..., r_g + r_u), (F, r_g), (F, r_u), (r_d, F) -> (..., r_d).

    The backward pass keeps z, both wide products and their gated product.
    """
    h = F.silu(z) if activation else z
    h_g, h_u = h.split([gate.shape[1], up.shape[1]], dim=-1)
    return torch.ops.cola_kernels.down(
        gated(F.linear(h_g, gate), F.linear(h_u, up), gate_silu), [down]
    )


def gated(g: Tensor, u: Tensor, gate_silu: bool) -> Tensor:
    """f(g) * u, f = SiLU with `gate_silu`, else the identity; keeps g and u alone."""
    if not gate_silu:
        return g * u
    if torch.compiler.is_compiling():  # it fuses this; and Dynamo of 2.11 loses _SwiGLU's gradient
        return F.silu(g) * u
    return _SwiGLU.apply(g, u)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(g, u)
        return F.silu(g).mul_(u)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dp: Tensor) -> tuple[Tensor, Tensor]:
        g, u = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.ops.aten.silu_backward(dp * u, g), F.silu(g).mul_(dp)


def _down(x: Tensor, weights: list[Tensor]) -> Tensor:
    return F.linear(x, stack(weights))


def _down_fake(x: Tensor, weights: list[Tensor]) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(weight.shape[0] for weight in weights))


def stack(weights: Sequence[Tensor]) -> Tensor:
    """The weights (r_i, d) as one (sum of r_i, d); a single one is not copied."""
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        with below_autograd():
            return DOWN(x, list(weights))

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needs_x, *needs_weights = ctx.needs_input_grad
        dx = DOWN_BACKWARD(dz, weights) if needs_x else None
        return dx, *weight_gradients(dz, x, weights, needs_weights)


def weight_gradients(
    dz: Tensor, x: Tensor, weights: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """dA_i (r_i, d) of z = x [A_1; ...; A_P]^T, views of one product, if any is needed."""
    if not any(needed):
        return [None] * len(weights)
    dw = dz.flatten(0, -2).t() @ x.flatten(0, -2)
    return list(dw.split([weight.shape[0] for weight in weights]))


# an op, or torch.compile would stack the weights in the forward pass and keep that
DOWN_BACKWARD = register(
    "down_backward(Tensor dz, Tensor[] weights) -> Tensor",
    lambda dz, weights: dz @ stack(weights),
    fake=lambda dz, weights: dz.new_empty(*dz.shape[:-1], weights[0].shape[1]),
    flops=product_flops,
)
DOWN = register(
    "down(Tensor x, Tensor[] weights) -> Tensor",
    _down,
    fake=_down_fake,
    flops=product_flops,
    autograd=lambda x, weights: _Down.apply(x, *weights),
)
