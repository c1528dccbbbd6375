"""The kernels of a block of auto-encoders (see methods/launches.py).

Triton's are those of the MLP's middle, where they remove passes of width f, and the products that a
residual is added to; all other matmuls are cuBLAS's. Triton's ops keep no SiLU of a rank-r vector.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    stacking,
    turned,
    weight_gradient,
)

# The linears of a block that share an input.
QKV, OUT, GATE_UP, DOWN = ("q", "k", "v"), ("o",), ("gate", "up"), ("down",)


class Silus(NamedTuple):
    """Where a block has SiLUs: on its rank-r vectors, on SwiGLU's gate."""

    rank_r: bool
    gate: bool


@dataclass(frozen=True)
class AutoEncoderBlock:
    """ranks: as they are stored. keeps_rank_r: the policy keeps the rank-r vectors and the residual
    stream, and nothing else but, with keeps_attention, attention's output."""

    model: ModelConfig
    work: Work
    ranks: Mapping[str, int]
    silus: Silus
    keeps_rank_r: bool
    keeps_attention: bool

    @property
    def fused_middle(self) -> bool:
        """Whether one kernel goes from the bottlenecks of gate and up to that of down."""
        return self.work.fused and self.ranks["gate"] == self.ranks["up"]

    def width(self, projections: Sequence[str]) -> int:
        """Of their rank-r vectors, side by side."""
        return sum(self.ranks[projection] for projection in projections)

    def launches(self) -> Iterator[Launch]:
        attend, feed = list(self.attend()), list(self.feed_forward())
        o, down = list(self.out("o")), list(self.out("down"))
        yield from (*attend, *o, *feed, *down)
        if self.keeps_rank_r:
            yield from self.again()
        elif self.work.policy != "none":
            yield from (*attend, *o, *feed)
        yield from self.feed_forward_backward()
        yield from self.attend_backward()

    def out(self, projection: str) -> Iterator[Launch]:
        """From a half's last rank-r vectors to its output."""
        n, d, r = self.work.tokens, self.model.d_model, self.ranks[projection]
        if self.work.fused:
            yield FusedGemm(n, d, r, products=1, moved=2 * n * d)
        else:
            yield linear(n, r, d)
            yield from residual_add(self.work, d)

    def attend(self) -> Iterator[Launch]:
        """From the block's input to the rank-r vectors of `o`."""
        n, d = self.work.tokens, self.model.d_model
        yield from norm(self.work, d)
        yield stacking(self.width(QKV) * d)
        yield linear(n, d, self.width(QKV))
        yield from self.silu(QKV)
        yield from [linear(n, self.ranks[projection], d) for projection in QKV]
        yield from attention(self.work, d)
        yield linear(n, d, self.ranks["o"])
        yield from self.silu(OUT)

    def feed_forward(self) -> Iterator[Launch]:
        """From the second half's input to the rank-r vectors of `down`."""
        n, d, f = self.work.tokens, self.model.d_model, self.model.inner.stored
        yield from norm(self.work, d)
        yield stacking(self.width(GATE_UP) * d)
        yield linear(n, d, self.width(GATE_UP))
        yield from self.silu(GATE_UP)
        yield from self.middle()
        yield linear(n, f, self.ranks["down"])
        yield from self.silu(DOWN)

    def middle(self) -> Iterator[Launch]:
        """p (n, f) of the rank-r vectors; g and u beside it, if they are kept."""
        n, f = self.work.tokens, self.model.inner.stored
        if self.fused_middle:
            written = 1 if self.keeps_rank_r else 3
            yield FusedGemm(n, f, self.ranks["gate"], products=2, moved=written * n * f)
        else:
            yield from [linear(n, self.ranks[projection], f) for projection in GATE_UP]
            yield from gated(self.work, f, self.silus.gate)

    def again(self) -> Iterator[Launch]:
        """What the backward pass repeats where the rank-r vectors are kept."""
        n, d = self.work.tokens, self.model.d_model
        yield from norm(self.work, d)
        yield from self.silu(QKV)
        yield from [linear(n, self.ranks[projection], d) for projection in QKV]
        yield from (turned if self.keeps_attention else attention)(self.work, d)
        yield from self.silu(OUT)
        yield from norm(self.work, d)
        yield from self.silu(GATE_UP)
        if not self.fused_middle:  # whose backward kernel has the middle's matmuls itself
            yield from self.middle()
        yield from self.silu(DOWN)

    def feed_forward_backward(self) -> Iterator[Launch]:
        n, d, f = self.work.tokens, self.model.d_model, self.model.inner.stored
        down = self.ranks["down"]
        yield from gradients(n, down, d)
        yield from self.silu_backward(DOWN)
        if not self.fused_middle:
            yield input_gradient(n, f, down)
            yield from gated_backward(self.work, f, self.silus.gate)
        elif self.keeps_rank_r:  # g, u and dp of a tile; dg, du and p are written
            mean = (self.width(GATE_UP) + down) // 3
            yield FusedGemm(n, f, mean, products=3, moved=3 * n * f)
        else:  # dp, whose epilogue reads g and u and writes dg and du
            yield FusedGemm(n, f, down, products=1, moved=4 * n * f)
        yield weight_gradient(n, f, down)
        for projection in GATE_UP:
            yield from gradients(n, self.ranks[projection], f)
        yield from self.silu_backward(GATE_UP)
        yield stacking(self.width(GATE_UP) * d)
        yield from gradients(n, d, self.width(GATE_UP))
        yield from norm_backward(self.work, d)

    def attend_backward(self) -> Iterator[Launch]:
        n, d = self.work.tokens, self.model.d_model
        yield from gradients(n, self.ranks["o"], d)
        yield from self.silu_backward(OUT)
        yield from gradients(n, d, self.ranks["o"])
        yield from attention_backward(self.work, d)
        for projection in QKV:
            yield from gradients(n, self.ranks[projection], d)
        yield from self.silu_backward(QKV)
        yield stacking(self.width(QKV) * d)
        yield from gradients(n, d, self.width(QKV))
        yield from norm_backward(self.work, d)

    def silu(self, projections: Sequence[str]) -> Iterator[Launch]:
        if self.silus.rank_r:
            yield Pass(2 * self.work.tokens * self.width(projections))

    def silu_backward(self, projections: Sequence[str]) -> Iterator[Launch]:
        """dz of the projections' dh, side by side."""
        one = self.work.tokens * self.width(projections)
        # the middle's, on torch's ops, is kept
        if self.fused_middle if projections == GATE_UP else self.work.fused:
            yield from self.silu(projections)
        if not self.work.compiled and len(projections) > 1:
            yield Pass(2 * one)
        if self.silus.rank_r:
            yield Pass(3 * one)
