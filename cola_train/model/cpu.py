"""What only CPUs need, chosen once for a model: `specialise`.

Shapes: B sequences, T positions, H heads, K = head width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from cola_train.model.context import Mask, allowed_pairs, sdpa_mask
from cola_train.model.loss import cross_entropy_
from cola_train.model.norm import RMSNorm

PRODUCTS_LENGTH = 512  # longest sequence for which the (T, T) probabilities are kept
SOFTMAX_BYTES = 8 * 2**20  # fp32 copies that the loss holds at a time: what the caches hold


def specialise(model: Any, dtype: torch.dtype, compiled: bool) -> None:
    """Change a `Llama` in place for a CPU; the mathematics stays.

    dtype: of its matmuls. compiled: torch.compile fuses norms itself, and Dynamo of 2.11 loses the
        gradient of ours.
    """
    for module in model.modules():
        if isinstance(module, RMSNorm) and not compiled:
            module.normalise = rms_norm
    model.head.cross_entropy = partial(cross_entropy_, softmax_bytes=SOFTMAX_BYTES)
    if dtype == torch.bfloat16 and model.make_mask is sdpa_mask:
        model.make_mask = product_mask


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Keeps its input and one number a row for the backward pass; torch's own keeps two fp32
    copies of its input."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight).to(x.dtype)  # computed in fp32, as rstd is

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
        normed = x * rstd
        gradient = dy * normed
        dweight = gradient.flatten(0, -2).sum(0).to(weight.dtype)
        inner = gradient.mul_(weight).mean(-1, keepdim=True)
        dx = dy.to(torch.float32, copy=True).mul_(weight).addcmul_(normed, inner, value=-1)
        return dx.mul_(rstd).to(x.dtype), dweight, None


@dataclass(frozen=True)
class ProductMask:
    """Attention as plain matmuls. bias: (B, 1, T, T) of x's dtype, -inf where nothing is seen."""

    bias: Tensor

    def attend(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        return _ProductAttention.apply(q, k, v, self.bias).transpose(1, 2)


def product_mask(documents_BT: Tensor | None, x_BTD: Tensor) -> Mask:
    """For short rows in bf16: torch's flash kernel computes bf16 at the speed of fp32."""
    T = x_BTD.shape[1]
    if T > PRODUCTS_LENGTH:
        return sdpa_mask(documents_BT, x_BTD)
    if documents_BT is None:
        documents_BT = torch.zeros(1, T, dtype=torch.int32, device=x_BTD.device)
    mask = allowed_pairs(documents_BT)
    bias = torch.zeros_like(mask, dtype=x_BTD.dtype).masked_fill_(~mask, -torch.inf)
    return ProductMask(bias)


class _ProductAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(K) + bias) v as batched matmuls that keep the probabilities."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        B, H, T, K = q.shape
        q, k, v = (x.reshape(B * H, T, K) for x in (q * K**-0.5, k, v))
        scores = torch.bmm(q, k.mT)
        scores.view(B, H, T, T).add_(bias)
        p = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(B, H, T, K)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors  # type: ignore[attr-defined]
        shape = dy.shape
        dy = dy.reshape(q.shape)
        dp = torch.bmm(dy, v.mT)
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dq = torch.bmm(ds, k).mul_(shape[-1] ** -0.5)
        dk, dv = torch.bmm(ds.mT, q), torch.bmm(p.mT, dy)
        return dq.view(shape), dk.view(shape), dv.view(shape), None
