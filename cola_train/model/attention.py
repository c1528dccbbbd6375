"""Rotary positions and causal self-attention, masked between the documents of a packed row.

Shapes: B sequences, T positions, H heads, K = head width, D = H K.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from cola_train.model.linear import Projections

PRODUCTS_LENGTH = 512  # longest sequence for which a CPU keeps the (T, T) probabilities


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


class _ProductAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(K) + bias) v as batched products that keep the probabilities.

    torch's flash kernel for CPUs computes bf16 at the speed of fp32; products do not.
    """

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


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(self, d_model: int, n_heads: int, backend: str, projections: Projections) -> None:
        """`projections(d_in, d_outs)` builds the linears; `backend` is sdpa or flash."""
        super().__init__()
        self.head_dim = d_model // n_heads
        self.backend = backend
        self.qkv = projections(d_model, {"q": d_model, "k": d_model, "v": d_model})
        self.out = projections(d_model, {"o": d_model})

    def forward(
        self, x_BTD: Tensor, table: Tensor, documents: Tensor | None, residual_BTD: Tensor
    ) -> Tensor:
        """residual + attention(x), (B, T, D). `documents`: what `attention_documents` made of the
        batch."""
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.qkv(x_BTD))
        q, k = rotate(q, table), rotate(k, table)
        y_BTHK = (flash_attend if self.backend == "flash" else attend)(q, k, v, documents)
        return self.out(y_BTHK.flatten(-2), residual_BTD)[0]


def attend(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention, (B, T, H, K); `mask` as `attention_documents` makes it for sdpa."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    if mask is not None and mask.is_floating_point():
        return _ProductAttention.apply(q, k, v, mask).transpose(1, 2)
    y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return y_BHTK.transpose(1, 2)


def flash_attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """The same by flash-attn; `lengths`: where the documents of the whole batch begin."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    if lengths is None:
        return flash_attn_func(q, k, v, causal=True)
    T = q.shape[1]
    q, k, v = (x_BTHK.flatten(0, 1) for x_BTHK in (q, k, v))
    y = flash_attn_varlen_func(q, k, v, lengths, lengths, T, T, causal=True)
    return y.unflatten(0, (-1, T))


def attention_documents(documents_BT: Tensor | None, backend: str, x_BTD: Tensor) -> Tensor | None:
    """Documents as the attention backend wants them, computed once for all layers.

    For sdpa a bool mask; or, where plain products are faster, a bias of x's dtype to add.
    """
    if backend == "flash":
        return None if documents_BT is None else document_lengths(documents_BT)[0]
    T = x_BTD.shape[1]
    if x_BTD.device.type != "cpu" or x_BTD.dtype != torch.bfloat16 or T > PRODUCTS_LENGTH:
        return None if documents_BT is None else document_mask(documents_BT)
    if documents_BT is None:
        documents_BT = torch.zeros(1, T, dtype=torch.int32, device=x_BTD.device)
    mask = document_mask(documents_BT)
    return torch.zeros_like(mask, dtype=x_BTD.dtype).masked_fill_(~mask, -torch.inf)
