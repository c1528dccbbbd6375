"""The kernels of a block whose weights are low rank plus sparse (see methods/launches.py)."""

from collections.abc import Iterator, Sequence

from cola_train.config.groups import ModelConfig
from cola_train.config.widths import stored
from cola_train.methods.launches import (
    Gemm,
    Launch,
    Pass,
    Work,
    attention,
    attention_backward,
    gated,
    gated_backward,
    input_gradient,
    linear,
    norm,
    norm_backward,
    residual_add,
    weight_gradient,
)

SECTOR = 16  # elements in bf16 of the 32 bytes that reading or writing one number moves


def block_launches(
    model: ModelConfig, work: Work, rank: int, sizes: Sequence[int]
) -> Iterator[Launch]:
    """rank: as it is stored; sizes: of each linear's support."""
    n, d, f = work.tokens, model.d_model, model.inner.stored
    linears = [
        (stored(d_in), stored(d_out), size)
        for (d_in, d_out), size in zip(model.linear_shapes, sizes, strict=True)
    ]
    forward: list[Launch] = [
        *norm(work, d), *attention(work, d), *residual_add(work, d),
        *norm(work, d), *gated(work, f, silu=True), *residual_add(work, d),
    ]  # fmt: skip
    for d_in, d_out, size in linears:
        forward += [*build(d_in, d_out, rank, size), linear(n, d_in, d_out)]
    yield from forward
    if work.policy != "none":
        yield from forward
    for d_in, d_out, size in linears:
        yield weight_gradient(n, d_in, d_out)
        yield Gemm(rank, d_in, d_out, (rank, d_in, d_in))  # B^T dW
        yield Gemm(d_out, rank, d_in, (d_in, d_in, rank))  # dW A^T
        yield Pass((SECTOR + 3) * size)
        yield from build(d_in, d_out, rank, size)
        yield input_gradient(n, d_in, d_out)
    for _ in range(3):  # inputs' gradients are added up: of q, k and v, of gate and up
        yield Pass(3 * n * d)
    yield from norm_backward(work, d)
    yield from attention_backward(work, d)
    yield from norm_backward(work, d)
    yield from gated_backward(work, f, silu=True)


def build(d_in: int, d_out: int, rank: int, size: int) -> Iterator[Launch]:
    """W of B A, and its sparse part: of each number the position, the value, and a sector."""
    yield Gemm(d_out, d_in, rank, (rank, d_in, d_in))
    yield Pass((2 * SECTOR + 3) * size)
