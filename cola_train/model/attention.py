"""Rotary positions and causal self-attention, masked between the documents of a packed row.

Shapes: B sequences, T positions, H heads, K = head width, D = H K.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

Projections = Callable[[int, dict[str, int]], nn.Module]


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
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


def rotate(x_BTHK: Tensor, table: Tensor) -> Tensor:
    """x turned by its position's angles; `table` from `rotary_table`, cast to x's dtype."""
    cos, sin = table.to(x_BTHK.dtype)[:, : x_BTHK.shape[1], None, :]
    return _Rotate.apply(x_BTHK, cos, sin)


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool, true where a query may see a key: not later, and in the same document."""
    T = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def document_lengths(documents_BT: Tensor) -> tuple[Tensor, int]:
    """Cumulative lengths of the documents of a batch laid end to end, and the longest.

    Returns:
        (number of documents + 1,) int32 starting at 0, as flash-attn's varlen functions take
        them, and the longest length that can occur (T; the true one would cost a device sync).
    """
    B, T = documents_BT.shape
    first = torch.ones(B, T, dtype=torch.bool, device=documents_BT.device)
    first[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = first.flatten().nonzero().flatten().to(torch.int32)
    return F.pad(starts, (0, 1), value=B * T), T


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(self, d_model: int, n_heads: int, backend: str, projections: Projections) -> None:
        """`projections(d_in, d_outs)` builds the linears; `backend` is sdpa or flash."""
        super().__init__()
        self.head_dim = d_model // n_heads
        self.backend = backend
        self.qkv = projections(d_model, {"q": d_model, "k": d_model, "v": d_model})
        self.out = projections(d_model, {"o": d_model})

    def forward(self, x_BTD: Tensor, table: Tensor, documents: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D). `documents`: what `attention_documents` made of the batch."""
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.qkv(x_BTD))
        q, k = rotate(q, table), rotate(k, table)
        y_BTHK = (self._flash if self.backend == "flash" else self._sdpa)(q, k, v, documents)
        return self.out(y_BTHK.flatten(-2))[0]

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (x_BTHK.transpose(1, 2) for x_BTHK in (q, k, v))
        y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return y_BHTK.transpose(1, 2)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        if lengths is None:
            return flash_attn_func(q, k, v, causal=True)
        T = q.shape[1]
        q, k, v = (x_BTHK.flatten(0, 1) for x_BTHK in (q, k, v))
        y = flash_attn_varlen_func(q, k, v, lengths, lengths, T, T, causal=True)
        return y.unflatten(0, (-1, T))


def attention_documents(documents_BT: Tensor | None, backend: str) -> Tensor | None:
    """Documents as the attention backend wants them, computed once for all layers."""
    if documents_BT is None:
        return None
    if backend == "flash":
        return document_lengths(documents_BT)[0]
    return document_mask(documents_BT)
