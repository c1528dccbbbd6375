"""RMSNorm, keeping no more than its input and one number a row for the backward pass.

Shapes: N rows (any leading axes), D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class _RMSNorm(torch.autograd.Function):
    """torch's own keeps two fp32 copies of its input on a CPU."""

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


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; ones at first."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))

    def forward(self, x: Tensor) -> Tensor:
        # compiled, torch's own is fused; and Dynamo of 2.11 loses the gradient of ours
        if x.is_cuda or torch.compiler.is_compiling():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return _RMSNorm.apply(x, self.weight, self.eps)
