"""Rotary positions and causal self-attention.

Shapes: B sequences, T positions, H heads, K = head width, D = H K.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from cola_train.model.context import AttentionContext
from cola_train.model.linear import Projections
from cola_train.model.norm import RMSNorm
from cola_train.model.tap import tap


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin of the rotary angles, (2, length, head_dim), fp32; LLaMA's half-split layout."""
    frequency_K = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle_TK = torch.outer(torch.arange(length, device=device).float(), frequency_K)
    angle_TK = torch.cat([angle_TK, angle_TK], dim=-1)
    return torch.stack([angle_TK.cos(), angle_TK.sin()])


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is the opposite rotation: nothing but the table is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotated(dy, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-direction)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return y


def rotary_for(table: Tensor, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
    """`table`, from `rotary_table`, for x's positions, of x's dtype: (2, T, 1, K) of the first T;
    (2, B, T, 1, K) of `positions_BT`, int64."""
    if positions_BT is not None:
        return table[:, positions_BT, None].to(x_BTD.dtype)
    return table[:, : x_BTD.shape[1], None].to(x_BTD.dtype)


def rotate(x_BTHK: Tensor, rotary: Tensor) -> Tensor:
    """x turned by its position's angles; `rotary` from `rotary_for`."""
    cos, sin = rotary
    return _Rotate.apply(x_BTHK, cos, sin)


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(
        self, d_model: int, n_heads: int, projections: Projections, qk_eps: float | None = None
    ) -> None:
        """`projections(d_in, d_outs)` builds the linears. With `qk_eps` each head's q and k are
        RMS-normalised, with scales that all heads share (arXiv 2505.09388, section 2)."""
        super().__init__()
        self.head_dim = d_model // n_heads
        self.qkv = projections(d_model, {"q": d_model, "k": d_model, "v": d_model})
        self.out = projections(d_model, {"o": d_model})
        self.normed = qk_eps is not None
        if qk_eps is not None:
            self.q_norm = RMSNorm(self.head_dim, qk_eps)
            self.k_norm = RMSNorm(self.head_dim, qk_eps)

    def forward(self, x_BTD: Tensor, context: AttentionContext, residual_BTD: Tensor) -> Tensor:
        """residual + attention(x), (B, T, D)."""
        if context.cache is not None:
            y_BTHK = context.cache.attend(self, x_BTD, context)
            return self.out(y_BTHK.flatten(-2), residual_BTD)[0]
        q, k, v = self.projected(x_BTD)
        q = tap("q", rotate(q, context.rotary))
        k = tap("k", rotate(k, context.rotary))
        y_BTHK = context.mask.attend(q, k, v)
        return self.out(y_BTHK.flatten(-2), residual_BTD)[0]

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, T, H, K) each."""
        q, k, v = self.qkv(x_BTD)
        return self.heads("q", q), self.heads("k", k), self.heads("v", v)

    def heads(self, name: str, y_BTD: Tensor) -> Tensor:
        """What that projection, q, k or v, gives, by head, (B, T, H, K): q and k normalised, if
        they are to be."""
        y_BTHK = y_BTD.view(*y_BTD.shape[:2], -1, self.head_dim)
        if not self.normed or name == "v":
            return y_BTHK
        normalised: Tensor = (self.q_norm if name == "q" else self.k_norm)(y_BTHK)
        return normalised
