"""The kernels of a block of LoRA's linears (see methods/launches.py): all matmuls are cuBLAS's."""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.config.groups import ModelConfig
from cola_train.methods.launches import (
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
)


@dataclass(frozen=True)
class LoraBlock:
    model: ModelConfig
    work: Work
    rank: int

    def launches(self) -> Iterator[Launch]:
        d, f = self.model.d_model, self.model.inner.stored
        forward = [
            *norm(self.work, d), *self.linears(3, d, d), *attention(self.work, d),
            *self.linears(1, d, d), *residual_add(self.work, d),
            *norm(self.work, d), *self.linears(2, d, f), *gated(self.work, f, silu=True),
        ]  # fmt: skip
        yield from forward
        yield from self.linears(1, f, d)
        yield from residual_add(self.work, d)
        if self.work.policy != "none":
            yield from forward
        yield from self.linears_backward(1, f, d)
        yield from gated_backward(self.work, f, silu=True)
        yield from self.linears_backward(2, d, f)
        yield from norm_backward(self.work, d)
        yield from self.linears_backward(1, d, d)
        yield from attention_backward(self.work, d)
        yield from self.linears_backward(3, d, d)
        yield from norm_backward(self.work, d)

    def linears(self, count: int, d_in: int, d_out: int) -> Iterator[Launch]:
        """Projections of one input."""
        n, r = self.work.tokens, self.rank
        yield from self.stacks(count, r * d_in)
        yield linear(n, d_in, count * r)
        yield Pass(2 * count * n * r)  # by the scale
        yield from [linear(n, r, d_out)] * count
        yield from self.stacks(count, d_in * d_out)
        yield linear(n, d_in, count * d_out)
        yield from [Pass(3 * n * d_out)] * count

    def linears_backward(self, count: int, d_in: int, d_out: int) -> Iterator[Launch]:
        n, r = self.work.tokens, self.rank
        for _ in range(count):
            yield from gradients(n, r, d_out)
        if count > 1 and not self.work.compiled:
            yield Pass(2 * count * n * d_out)  # the outputs' gradients, side by side
        yield from self.stacks(count, d_in * d_out)
        yield input_gradient(n, d_in, count * d_out)
        yield Pass(2 * count * n * r)
        yield from self.stacks(count, r * d_in)
        yield from gradients(n, d_in, count * r)
        yield Pass(3 * n * d_in)  # the sum of the input's gradients

    def stacks(self, count: int, elements: int) -> Iterator[Launch]:
        if count > 1:
            yield stacking(count * elements)
