"""What generation keeps of the positions that a model has seen.

Shapes: B sequences, T new positions, S positions in all, H heads, K = head width. Prompts of
different length are padded on the left, so that all rows go on at the same column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cola_train.model.attention import rotary_for, rotate
from cola_train.model.context import AttentionContext, CausalMask, DocumentMask, Mask
from cola_train.model.llama import Llama


class KeyValueCache:
    """Keys and values of each block.

    length: columns that there is room for. starts_B: how many of a row's first columns are
    padding, int64; None: no row has any. dtype: of activations; None: that of the weights, which
    a model in training may hold in another.
    """

    def __init__(
        self,
        model: Llama,
        batch: int,
        length: int,
        starts_B: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config, weight = model.config, model.embedding.weight
        shape = (2, batch, length, config.n_heads, config.head_dim)
        self.length, self.filled, self.starts_B = length, 0, starts_B
        self.blocks = [
            torch.zeros(shape, dtype=dtype or weight.dtype, device=weight.device)
            for _ in model.layers
        ]

    def contexts(self, table: Tensor, x_BTD: Tensor) -> Sequence[AttentionContext]:
        begin, end = self.filled, self.filled + x_BTD.shape[1]
        assert end <= self.length, f"{end} positions in a cache of {self.length}"
        self.filled = end
        columns_T = torch.arange(begin, end, device=x_BTD.device)
        starts_B1 = 0 if self.starts_B is None else self.starts_B[:, None]
        # a row that has come to the model's length may stand beside one that has not
        last = table.shape[1] - 1
        positions_BT = (columns_T - starts_B1).clamp(0, last).expand(x_BTD.shape[0], -1)
        rotary, mask = rotary_for(table, x_BTD, positions_BT), self.mask(begin, end, x_BTD.device)
        return [
            AttentionContext(rotary, mask, KeyValues(block, begin, end)) for block in self.blocks
        ]

    def mask(self, begin: int, end: int, device: torch.device) -> Mask:
        """Which of the columns before `end` those from `begin` on see."""
        if self.starts_B is None and begin == 0:
            return CausalMask()
        queries_T1 = torch.arange(begin, end, device=device)[:, None]
        keys_S = torch.arange(end, device=device)
        allowed_BTS = (keys_S <= queries_T1)[None]
        if self.starts_B is not None:  # padding sees itself: of nothing, softmax makes NaN
            allowed_BTS = allowed_BTS & (keys_S >= self.starts_B[:, None, None])
            allowed_BTS = allowed_BTS | (keys_S == queries_T1)
        return DocumentMask(allowed_BTS[:, None])


@dataclass(frozen=True)
class KeyValues:
    """One block's, for a pass over the columns from `begin` to `end`; block: (2, B, length, H, K),
    keys rotated."""

    block: Tensor
    begin: int
    end: int

    def attend(
        self, qkv: nn.Module, x_BTD: Tensor, head_dim: int, context: AttentionContext
    ) -> Tensor:
        shape = (*x_BTD.shape[:2], -1, head_dim)
        q, k, v = (y.view(shape) for y in qkv(x_BTD))
        keys, values = self.block.unbind()
        keys[:, self.begin : self.end] = rotate(k, context.rotary)
        values[:, self.begin : self.end] = v
        q = rotate(q, context.rotary)
        return context.mask.attend(q, keys[:, : self.end], values[:, : self.end])
