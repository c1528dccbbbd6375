"""The kernels of a block of auto-encoders (see methods/launches.py).

Triton's are those of the MLP's middle, where they remove passes of width f, and the products that a
residual is added to; all other matmuls are cuBLAS's. Triton's ops keep no SiLU of a rank-r vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cola_train.config.groups import ModelConfig
from cola_train.methods.launches import (
    FusedGemm,
    Launch,
    Pass,
    Work,
    attention,
    attention_backward,
    gated,
    gated_backward,
    gradients,
    input_gradient,
    linear,
    norm,
    norm_backward,
    residual_add,
    rotary,
    stacking,
    weight_gradient,
)


class Silus(NamedTuple):
    """Where a block has SiLUs: on its rank-r vectors, on SwiGLU's gate."""

    rank_r: bool
    gate: bool


@dataclass(frozen=True)
class AutoEncoderBlock:
    """keeps_rank_r: the policy keeps the rank-r vectors and the residual stream, and nothing else
    but, with keeps_attention, attention's output."""

    model: ModelConfig
    work: Work
    rank: int
    silus: Silus
    keeps_rank_r: bool
    keeps_attention: bool

    @property
    def fused_middle(self) -> bool:
        """Whether one kernel goes from the bottlenecks of gate and up to that of down."""
        return self.work.fused

    def launches(self) -> Iterator[Launch]:
        n, d, r = self.work.tokens, self.model.d_model, self.rank
        attend, feed = list(self.attend()), list(self.feed_forward())
        out: list[Launch] = [linear(n, r, d), *residual_add(self.work, d)]  # of both halves
        if self.work.fused:
            out = [FusedGemm(n, d, r, products=1, moved=2 * n * d)]
        yield from (*attend, *out, *feed, *out)
        if self.keeps_rank_r:
            yield from self.again()
        elif self.work.policy != "none":
            yield from (*attend, *out, *feed)
        yield from self.feed_forward_backward()
        yield from self.attend_backward()

    def attend(self) -> Iterator[Launch]:
        """From the block's input to the rank-r vectors of `o`."""
        n, d, r = self.work.tokens, self.model.d_model, self.rank
        yield from norm(self.work, d)
        yield stacking(3 * r * d)
        yield linear(n, d, 3 * r)
        yield from self.silu(3)
        yield from [linear(n, r, d)] * 3
        yield from attention(self.work, d)
        yield linear(n, d, r)
        yield from self.silu(1)

    def feed_forward(self) -> Iterator[Launch]:
        """From the second half's input to the rank-r vectors of `down`."""
        n, d, f, r = self.work.tokens, self.model.d_model, self.model.inner.stored, self.rank
        yield from norm(self.work, d)
        yield stacking(2 * r * d)
        yield linear(n, d, 2 * r)
        yield from self.silu(2)
        yield from self.middle()
        yield linear(n, f, r)
        yield from self.silu(1)

    def middle(self) -> Iterator[Launch]:
        """p (n, f) of the rank-r vectors; g and u beside it, if they are kept."""
        n, f, r = self.work.tokens, self.model.inner.stored, self.rank
        if self.fused_middle:
            written = 1 if self.keeps_rank_r else 3
            yield FusedGemm(n, f, r, products=2, moved=written * n * f)
        else:
            yield from [linear(n, r, f)] * 2
            yield from gated(self.work, f, self.silus.gate)

    def again(self) -> Iterator[Launch]:
        """What the backward pass repeats where the rank-r vectors are kept."""
        n, d, r = self.work.tokens, self.model.d_model, self.rank
        yield from norm(self.work, d)
        yield from self.silu(3)
        yield from [linear(n, r, d)] * 3
        yield from (rotary if self.keeps_attention else attention)(self.work, d)
        yield from self.silu(1)
        yield from norm(self.work, d)
        yield from self.silu(2)
        if not self.fused_middle:  # whose backward kernel has the middle's matmuls itself
            yield from self.middle()
        yield from self.silu(1)

    def feed_forward_backward(self) -> Iterator[Launch]:
        n, d, f, r = self.work.tokens, self.model.d_model, self.model.inner.stored, self.rank
        yield from gradients(n, r, d)
        yield from self.silu_backward(1)
        if not self.fused_middle:
            yield input_gradient(n, f, r)
            yield from gated_backward(self.work, f, self.silus.gate)
        elif self.keeps_rank_r:  # g, u and dp of a tile; dg, du and p are written
            yield FusedGemm(n, f, r, products=3, moved=3 * n * f)
        else:  # dp, whose epilogue reads g and u and writes dg and du
            yield FusedGemm(n, f, r, products=1, moved=4 * n * f)
        yield weight_gradient(n, f, r)
        for _ in ("gate", "up"):
            yield from gradients(n, r, f)
        yield from self.silu_backward(2)
        yield stacking(2 * r * d)
        yield from gradients(n, d, 2 * r)
        yield from norm_backward(self.work, d)

    def attend_backward(self) -> Iterator[Launch]:
        n, d, r = self.work.tokens, self.model.d_model, self.rank
        yield from gradients(n, r, d)
        yield from self.silu_backward(1)
        yield from gradients(n, d, r)
        yield from attention_backward(self.work, d)
        for _ in ("q", "k", "v"):
            yield from gradients(n, r, d)
        yield from self.silu_backward(3)
        yield stacking(3 * r * d)
        yield from gradients(n, d, 3 * r)
        yield from norm_backward(self.work, d)

    def silu(self, projections: int) -> Iterator[Launch]:
        if self.silus.rank_r:
            yield Pass(2 * projections * self.work.tokens * self.rank)

    def silu_backward(self, projections: int) -> Iterator[Launch]:
        """dz of the projections' dh, side by side."""
        one = projections * self.work.tokens * self.rank
        if self.work.fused:
            yield from self.silu(projections)
        if not self.work.compiled and projections > 1:
            yield Pass(2 * one)
        if self.silus.rank_r:
            yield Pass(3 * one)
