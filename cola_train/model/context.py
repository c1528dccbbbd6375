"""What all blocks of a forward pass share: rotary positions, and who may see whom.

Shapes: B sequences, T positions, H heads, K = head width. A mask is an object that attends: there
is one type for each kind, and Attention knows none of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Names of the ops that attend, as the dispatcher writes them, for recompute policies.
ATTENTION_OPS = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
    }
)


class Mask(Protocol):
    def attend(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(K)) v over what a position may see, (B, T, H, K)."""
        ...


# (documents_BT or None: a row is one document; x_BTD, whose shape, dtype and device it is for)
MaskMaker = Callable[[Tensor | None, Tensor], Mask]


class Projected(Protocol):
    """What a cache needs of a block's attention (`model.attention.Attention`)."""

    qkv: nn.Module  # the block's projections of x (`model.llama.Layers`)

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v before they are rotated, (B, T, H, K) each."""
        ...

    def heads(self, name: str, y_BTD: Tensor) -> Tensor:
        """The same of what one projection gives, (B, T, D)."""
        ...


class LayerCache(Protocol):
    """What one block keeps of the positions that it has seen, in place of a mask."""

    def attend(self, of: Projected, x_BTD: Tensor, context: "AttentionContext") -> Tensor:
        """Attention of x's positions over those before and themselves, which are kept for the next
        call, (B, T, H, K)."""
        ...


class Cache(Protocol):
    """What a model keeps of the positions that it has seen (inference/caches.py)."""

    def contexts(self, table: Tensor, x_BTD: Tensor) -> Sequence["AttentionContext"]:
        """One for each block, of a forward pass over the next T positions. table: of
        `attention.rotary_table`."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """rotary: (2, T, 1, K), or (2, B, T, 1, K) where positions differ from row to row, of the
    blocks' dtype, from `attention.rotary_for`. cache: of this block; none in training."""

    rotary: Tensor
    mask: Mask
    cache: LayerCache | None = None


@dataclass(frozen=True)
class CausalMask:
    """Every position sees itself and those before it."""

    def attend(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@dataclass(frozen=True)
class DocumentMask:
    """The same within a document. allowed: (B, 1, T, T) bool, true where a query may see a key."""

    allowed: Tensor

    def attend(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed)
        return y.transpose(1, 2)


@dataclass(frozen=True)
class FlashMask:
    """Causal attention by flash-attn. starts: where the documents of the whole batch begin, laid
    end to end, (documents + 1,) int32; None: a row is one document."""

    starts: Tensor | None

    def attend(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        if self.starts is None:
            return flash_attn_func(q_BTHK, k_BTHK, v_BTHK, causal=True)
        T = q_BTHK.shape[1]  # the longest that can occur; the true one would cost a device sync
        q, k, v = (x.flatten(0, 1) for x in (q_BTHK, k_BTHK, v_BTHK))
        y = flash_attn_varlen_func(q, k, v, self.starts, self.starts, T, T, causal=True)
        return y.unflatten(0, q_BTHK.shape[:2])


def sdpa_mask(documents_BT: Tensor | None, x_BTD: Tensor) -> Mask:
    return CausalMask() if documents_BT is None else DocumentMask(allowed_pairs(documents_BT))


def flash_mask(documents_BT: Tensor | None, x_BTD: Tensor) -> Mask:
    return FlashMask(None if documents_BT is None else document_starts(documents_BT))


MASKS: dict[str, MaskMaker] = {"sdpa": sdpa_mask, "flash": flash_mask}  # by model.attention


def allowed_pairs(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T) bool, true where a query may see a key: not later, and in the same document."""
    T = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def document_starts(documents_BT: Tensor) -> Tensor:
    """Cumulative lengths of the documents of a batch laid end to end: (documents + 1,) int32
    starting at 0, as flash-attn's varlen functions take them."""
    B, T = documents_BT.shape
    first = torch.ones(B, T, dtype=torch.bool, device=documents_BT.device)
    first[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = first.flatten().nonzero().flatten().to(torch.int32)
    return F.pad(starts, (0, 1), value=B * T)
