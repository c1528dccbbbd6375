"""What generation keeps of the positions that a model has seen, by kind (`CACHES`).

Shapes: B sequences, T new positions, S positions in all, H heads, K = head width, D = H K, r the
bottleneck width. Prompts of different length are padded on the left, so that all rows go on at the
same column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from cola_train.errors import UserError
from cola_train.inference.step import Step, angles, query_key_angles, rows, turned
from cola_train.model.attention import rotary_for
from cola_train.model.context import AttentionContext, LayerCache, Projected
from cola_train.model.llama import Block, Llama


@runtime_checkable
class Bottlenecked(Protocol):
    """Projections that a block's cache may keep the bottlenecks of (`model.linear.AutoEncoders`):
    y_i = B_i s_i."""

    def bottlenecks(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., d_in) -> one s_i, (..., r_i), for each projection, in order."""
        ...

    def widths(self) -> list[int]:
        """Each r_i."""
        ...

    def expand(self, name: str, s: Tensor) -> Tensor:
        """B of that name times s: (..., r) -> (..., d_out)."""
        ...

    def decoder(self, name: str) -> Tensor:
        """B of that name, transposed, (r, d_out)."""
        ...


class KeyValueCache:
    """Keys and values of each block; and what all kinds share.

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
        self.table = model.rotary
        self.kept: list[Tensor] = []  # all of it
        self.blocks = [self.block(block.attention.qkv) for block in blocks_of(model)]

    def block(self, qkv: nn.Module) -> LayerCache:
        """What one block keeps, of no column so far."""
        heads, width = self.config.n_heads, self.config.head_dim
        return KeyValues(self.new(heads, width), self.new(heads, width))

    def new(self, heads: int, width: int) -> Tensor:
        shape = (self.batch * heads, self.length, width)
        kept = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.kept.append(kept)
        return kept

    def contexts(self, table: Tensor, x_BTD: Tensor) -> Sequence[AttentionContext]:
        T = x_BTD.shape[1]
        if self.static and T == 1:
            step = self.next_step(table, x_BTD)
        else:
            begin = int(self.position) if self.static else self.filled
            end = begin + T
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


@dataclass(frozen=True)
class KeyValues:
    """One block's keys, rotated, and values, (B H, length, K) each."""

    keys: Tensor
    values: Tensor

    def attend(self, of: Projected, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        step = step_of(context)
        q, k, v = of.projected(x_BTD)
        q, k = step.turn(q, k)
        step.keep(self.keys, k)
        step.keep(self.values, v)
        if step.first is not None:
            return step.first.attend(q, k, v)
        return step.attend(q, self.keys, self.values).to(x_BTD.dtype)


@dataclass(frozen=True)
class Absorbed:
    """One block's keys, (B H, length, K), and what values are B_v of, (B, length, r). All heads
    attend to that, and multiply by their rows of B_v afterwards.

    decoder: B_v of each head, (H, r, K).
    """

    keys: Tensor
    values: Tensor
    decoder: Tensor

    def attend(self, of: Projected, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        step, layers = step_of(context), Heads(of)
        s_q, s_k, s_v = layers.bottlenecks(x_BTD)
        q, k = step.turn(layers.expand("q", s_q), layers.expand("k", s_k))
        step.keep(self.keys, k)
        step.keep(self.values, s_v[:, :, None])
        if step.first is not None:
            return step.first.attend(q, k, layers.expand("v", s_v))
        s_BTHr = step.attend(q, self.keys, self.values)
        return decoded(s_BTHr.to(x_BTD.dtype), self.decoder)


@dataclass(frozen=True)
class Latent:
    """What one block's keys and values are B_k and B_v of, (B, length, r_k) and (B, length, r_v):
    the latter as `Absorbed` has it; keys are made anew in each step, as those of one position,
    turned or normalised, are no product of anything that all heads and positions share.

    angles: of all columns, (2, 1 or B, length, 1, K).
    """

    keys: Tensor
    values: Tensor
    decoder: Tensor
    angles: Tensor

    def attend(self, of: Projected, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        step, layers = step_of(context), Heads(of)
        s_q, s_k, s_v = layers.bottlenecks(x_BTD)
        q = layers.expand("q", s_q)
        step.keep(self.keys, s_k[:, :, None])
        step.keep(self.values, s_v[:, :, None])
        if step.first is not None:
            q, k = step.turn(q, layers.expand("k", s_k))
            return step.first.attend(q, k, layers.expand("v", s_v))
        q = turned(q, step.rotary[:, :, :, 0])
        k_BSHK = layers.expand("k", step.seen(self.keys))
        k_BSHK = turned(k_BSHK, self.angles.narrow(2, 0, step.end)).to(x_BTD.dtype)
        s_BTHr = step.attend(q, rows(k_BSHK), self.values)
        return decoded(s_BTHr.to(x_BTD.dtype), self.decoder)


@dataclass(frozen=True)
class Heads:
    """Outputs of auto-encoders by head."""

    of: Projected

    def bottlenecks(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        return bottlenecked(self.of.qkv).bottlenecks(x_BTD)

    def expand(self, name: str, s: Tensor) -> Tensor:
        """(B, T, r) -> (B, T, H, K)."""
        return self.of.heads(name, bottlenecked(self.of.qkv).expand(name, s))


def decoded(s_BTHr: Tensor, decoder_HrK: Tensor) -> Tensor:
    """Each head's vector times its rows of B, (B, T, H, K)."""
    B, T = s_BTHr.shape[:2]
    y_HNK = torch.bmm(s_BTHr.flatten(0, 1).transpose(0, 1), decoder_HrK)
    return y_HNK.transpose(0, 1).unflatten(0, (B, T))


def bottlenecked(qkv: nn.Module) -> Bottlenecked:
    return cast(Bottlenecked, qkv)  # `make_cache` has looked


class AbsorbedCache(KeyValueCache):
    """Keys and values' bottlenecks, of auto-encoders."""

    def block(self, qkv: nn.Module) -> LayerCache:
        decoder = self.decoder(qkv)
        keys = self.new(self.config.n_heads, self.config.head_dim)
        return Absorbed(keys, self.new(1, decoder.shape[1]), decoder)

    def decoder(self, qkv: nn.Module) -> Tensor:
        """B_v of each head, (H, r, K)."""
        B_rD = bottlenecked(qkv).decoder("v").to(self.dtype)
        return B_rD.unflatten(-1, (self.config.n_heads, -1)).transpose(0, 1).contiguous()


class LatentCache(AbsorbedCache):
    """Keys' and values' bottlenecks, of auto-encoders."""

    def block(self, qkv: nn.Module) -> LayerCache:
        _, of_keys, of_values = bottlenecked(qkv).widths()
        keys, values = self.new(1, of_keys), self.new(1, of_values)
        return Latent(keys, values, self.decoder(qkv), self.angles)

    @cached_property
    def angles(self) -> Tensor:
        columns = torch.arange(self.length, device=self.device)
        return angles(self.table, self.positions(columns, self.table))


# by the names that `MethodOptions.caches` counts them under
CACHES = {"kv": KeyValueCache, "absorbed": AbsorbedCache, "latent": LatentCache}


def kinds(model: Llama) -> list[str]:
    """The caches that a model may have: only auto-encoders have bottlenecks to keep."""
    if all(isinstance(block.attention.qkv, Bottlenecked) for block in blocks_of(model)):
        return list(CACHES)
    return ["kv"]


def make_cache(
    kind: str,
    model: Llama,
    batch: int,
    length: int,
    starts_B: Tensor | None = None,
    dtype: torch.dtype | None = None,
    static: bool = False,
) -> KeyValueCache:
    """A cache of that kind; the rest as for `KeyValueCache`.

    Raises:
        UserError: the model has no such cache.
    """
    check_kind(kind, model)
    return CACHES[kind](model, batch, length, starts_B, dtype, static)


def check_kind(kind: str, model: Llama) -> None:
    """Raises UserError if the model has no cache of that kind."""
    if kind not in kinds(model):
        raise UserError(
            f"cache: {kind!r} is not one of this model's, which are {', '.join(kinds(model))}"
            + ("; its projections have no bottleneck" if kind in CACHES else "")
        )


def blocks_of(model: Llama) -> Iterator[Block]:
    for block in model.layers:
        assert isinstance(block, Block)
        yield block


def step_of(context: AttentionContext) -> Step:
    assert isinstance(context.mask, Step)
    return context.mask
