"""What generation keeps of the positions that a model has seen, by kind (`CACHES`).

Shapes: B sequences, T new positions, S positions in all, H heads, K = head width, D = H K, r the
bottleneck width. Prompts of different length are padded on the left, so that all rows go on at the
same column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cola_train.inference.step import Step, query_key_angles
from cola_train.model.attention import rotary_for, rotate
from cola_train.model.context import AttentionContext, LayerCache
from cola_train.model.llama import Block, Llama


@runtime_checkable
class Bottlenecked(Protocol):
    """Projections that a block's cache may keep the bottlenecks of (`model.linear.AutoEncoders`):
    y_i = B_i s_i."""

    def bottlenecks(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., d_in) -> one s_i, (..., r), for each projection, in order."""
        ...

    def expand(self, name: str, s: Tensor) -> Tensor:
        """B of that name times s: (..., r) -> (..., d_out)."""
        ...


class KeyValueCache:
    """Keys and values of each block; what other kinds share.

    length: columns that there is room for. starts_B: how many of a row's first columns are
    padding, int64; None: no row has any. dtype: of activations; None: that of the weights, which
    a model in training may hold in another. static: a pass over one column, for each row, computes
    on all columns with the number of those before in a tensor, so that one graph serves every step
    (inference/graphs.py).
    """

    def __init__(
        self,
        model: Llama,
        batch: int,
        length: int,
        starts_B: Tensor | None = None,
        dtype: torch.dtype | None = None,
        static: bool = False,
    ) -> None:
        weight = model.embedding.weight
        self.config, self.make_mask = model.config, model.make_mask
        self.batch, self.length, self.starts_B, self.static = batch, length, starts_B, static
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.filled = 0
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.blocks = [self.block(block.attention.qkv) for block in blocks_of(model)]

    def block(self, qkv: nn.Module) -> LayerCache:
        """What one block keeps, of so far no column."""
        heads, width = self.config.n_heads, self.config.head_dim
        return KeyValues(self.kept(heads, width), self.kept(heads, width))

    def kept(self, heads: int, width: int) -> Tensor:
        shape = (self.batch, heads, self.length, width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        return [kept for block in self.blocks for kept in vars(block).values()]

    def contexts(self, table: Tensor, x_BTD: Tensor) -> Sequence[AttentionContext]:
        T = x_BTD.shape[1]
        if self.static and T == 1:
            step = self.next_step(table, x_BTD)
        else:
            begin, end = self.filled, self.filled + T
            assert end <= self.length, f"{end} positions in a cache of {self.length}"
            self.filled = end
            self.position.fill_(end)
            columns_T = torch.arange(begin, end, device=x_BTD.device)
            step = self.step(table, x_BTD, columns_T, end, begin=begin)
        return [AttentionContext(step.rotary, step, block) for block in self.blocks]

    def next_step(self, table: Tensor, x_BTD: Tensor) -> Step:
        """Of one column, whose number only the device knows."""
        columns_1 = self.position.clone()
        self.position.add_(1)
        return self.step(table, x_BTD, columns_1, self.length, begin=None)

    def step(
        self, table: Tensor, x_BTD: Tensor, columns_T: Tensor, end: int, begin: int | None
    ) -> Step:
        """Over columns_T, which see those before `end`; begin: as `Step` has it."""
        positions_BT = self.positions(columns_T, table)
        if begin == 0:
            documents_BT = None
            if self.starts_B is not None:  # padding is a document of its own
                documents_BT = (columns_T >= self.starts_B[:, None]).int()
            first = self.make_mask(documents_BT, x_BTD)
            rotary = rotary_for(table, x_BTD, positions_BT.expand(len(x_BTD), -1))
            return Step(columns_T, begin, end, rotary, first=first)
        all_seen = self.starts_B is None and begin == end - 1
        bias = None if all_seen else self.bias(columns_T, end)
        return Step(columns_T, begin, end, query_key_angles(table, positions_BT), bias)

    def bias(self, columns_T: Tensor, end: int) -> Tensor:
        """(1 or B, 1, T, end), -inf where a column is not seen."""
        all_S, own_T1 = torch.arange(end, device=columns_T.device), columns_T[:, None]
        hidden_BTS = (all_S > own_T1)[None]
        if self.starts_B is not None:
            padding_BTS = (all_S < self.starts_B[:, None, None]) & (all_S != own_T1)
            hidden_BTS = hidden_BTS | padding_BTS
        hidden = hidden_BTS[:, None]
        return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -torch.inf)

    def positions(self, columns: Tensor, table: Tensor) -> Tensor:
        """(1 or B, columns), as rotary angles count: a row that has come to the model's length may
        stand beside one that has not."""
        starts_B1 = 0 if self.starts_B is None else self.starts_B[:, None]
        return (columns[None] - starts_B1).clamp(0, table.shape[1] - 1)


def blocks_of(model: Llama) -> Iterator[Block]:
    for block in model.layers:
        assert isinstance(block, Block)
        yield block


def step_of(context: AttentionContext) -> Step:
    assert isinstance(context.mask, Step)
    return context.mask


@dataclass(frozen=True)
class KeyValues:
    """Keys, rotated, and values of one block, (B, H, length, K) each."""

    keys: Tensor
    values: Tensor

    def attend(
        self, qkv: nn.Module, x_BTD: Tensor, head_dim: int, context: AttentionContext
    ) -> Tensor:
        step = step_of(context)
        q, k, v = (y.unflatten(-1, (-1, head_dim)) for y in qkv(x_BTD))
        if step.first is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        else:
            q, k = step.turn(q, k)
        step.keep(self.keys, k.transpose(1, 2))
        step.keep(self.values, v.transpose(1, 2))
        if step.first is not None:
            return step.first.attend(q, k, v)
        return step.attend(q, self.keys, self.values).to(x_BTD.dtype)
