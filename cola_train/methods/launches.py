"""The kernels that a GPU runs in one block's step, as its method lists them: shapes and passes over
memory, without times. planning/launch_time.py knows what each takes.

n positions of a micro-batch; d, f, r as in methods/costs.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cola_train.config.groups import ModelConfig
from cola_train.methods.costs import Weight

ELEMENTWISE = "other elementwise"
PARTS = (  # of a step
    "block GEMMs", "attention", "norms", "rotary", ELEMENTWISE, "stacking", "head GEMMs", "loss",
    "weight copies", "norm, clip, update",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What decides, beside the model's shape and the method, which kernels a block runs."""

    tokens: int  # n
    length: int  # of a sequence
    policy: str  # of recomputation
    fused: bool  # on Triton's kernels, where the method has any
    compiled: bool
    qk_norm: bool = False  # as `model.qk_norm`


@dataclass(frozen=True)
class Gemm:
    """(rows, depth) x (depth, columns), left to cuBLAS.

    widths: elements of a row as it lies in memory, of both operands and of the output.
    more: elements that it reads or writes beside them.
    fp8: whether train.precision=fp8 takes it.
    """

    rows: int
    columns: int
    depth: int
    widths: tuple[int, int, int]
    more: int = 0
    fp8: bool = False
    part: str = "block GEMMs"


@dataclass(frozen=True)
class FusedGemm:
    """A persistent Triton kernel: `products` matmuls for each tile of (rows, columns), joined in an
    epilogue.

    moved: elements of (rows, columns) that it reads and writes.
    """

    rows: int
    columns: int
    depth: int
    products: int
    moved: int
    part: str = "block GEMMs"


@dataclass(frozen=True)
class Pass:
    """An elementwise kernel. elements: read and written, of the compute dtype."""

    elements: int
    part: str = ELEMENTWISE


@dataclass(frozen=True)
class Attention:
    """Causal attention by one kernel, which computes the scores again in its backward pass."""

    tokens: int
    length: int
    d_model: int
    backward: bool = False
    part: str = "attention"


Launch = Gemm | FusedGemm | Pass | Attention


def linear(n: int, d_in: int, d_out: int) -> Gemm:
    """y = x W^T, with x (n, d_in) and W (d_out, d_in)."""
    return Gemm(n, d_out, d_in, (d_in, d_in, d_out), fp8=True)


def weight_gradient(n: int, d_in: int, d_out: int) -> Gemm:
    """dW = dy^T x."""
    return Gemm(d_out, d_in, n, (d_out, d_in, d_in))


def input_gradient(n: int, d_in: int, d_out: int) -> Gemm:
    """dx = dy W."""
    return Gemm(n, d_in, d_out, (d_out, d_in, d_in), fp8=True)


def gradients(n: int, d_in: int, d_out: int) -> Iterator[Gemm]:
    """Both."""
    yield weight_gradient(n, d_in, d_out)
    yield input_gradient(n, d_in, d_out)


def stacking(elements: int) -> Pass:
    """The copy of weights that are multiplied together, so many elements in all."""
    return Pass(2 * elements, "stacking")


def norm(work: Work, d: int) -> Iterator[Launch]:
    yield Pass(2 * work.tokens * d, "norms")


def norm_backward(work: Work, d: int) -> Iterator[Launch]:
    """And the sum with the residual stream's gradient, which a compiled block computes with it."""
    nd = work.tokens * d
    if work.compiled:
        yield Pass(4 * nd, "norms")
        yield Pass(nd // 20, "norms")  # the weight's gradient, of partial sums
    else:
        yield Pass(3 * nd, "norms")
        yield Pass(2 * nd, "norms")
        yield Pass(3 * nd)


def residual_add(work: Work, d: int) -> Iterator[Launch]:
    yield Pass(3 * work.tokens * d)


def rotary(work: Work, d: int) -> Iterator[Launch]:
    """Of q and k, forward or backward."""
    nd = work.tokens * d
    for _ in ("q", "k"):
        if work.compiled:
            yield Pass(2 * nd, "rotary")
        else:
            yield Pass(2 * nd, "rotary")
            for _ in range(2):  # over half rows, which cost 1.4 times their bytes. Chosen.
                yield Pass(21 * nd // 10, "rotary")


def turned(work: Work, d: int) -> Iterator[Launch]:
    """q and k normalised, if they are, and rotated."""
    if work.qk_norm:
        for _ in ("q", "k"):
            yield from norm(work, d)
    yield from rotary(work, d)


def attention(work: Work, d: int) -> Iterator[Launch]:
    """With what comes before it."""
    yield from turned(work, d)
    yield Attention(work.tokens, work.length, d)


def attention_backward(work: Work, d: int) -> Iterator[Launch]:
    yield Attention(work.tokens, work.length, d, backward=True)
    yield from rotary(work, d)
    if work.qk_norm:
        for _ in ("q", "k"):
            yield from head_norm_backward(work, d)


def head_norm_backward(work: Work, d: int) -> Iterator[Launch]:
    """As `norm_backward`, without the residual stream. Not measured on a GPU: a compiled block may
    do this, and the norm itself, in the rotation's kernel."""
    nd = work.tokens * d
    yield Pass(3 * nd, "norms")
    yield Pass(nd // 20 if work.compiled else 2 * nd, "norms")


def gated(work: Work, f: int, silu: bool) -> Iterator[Launch]:
    """p = f(g) u of g and u (n, f), f the SiLU or the identity."""
    nf = work.tokens * f
    if silu and not work.compiled:
        yield Pass(2 * nf)
    yield Pass(3 * nf)


def gated_backward(work: Work, f: int, silu: bool) -> Iterator[Launch]:
    """dg and du of dp, g and u."""
    nf = work.tokens * f
    if work.compiled:
        yield Pass(5 * nf)
        return
    yield Pass(3 * nf)
    yield Pass(3 * nf)
    if silu:  # f(g) again, and f'(g)
        yield Pass(2 * nf)
        yield Pass(3 * nf)


def of_weights(weights: Iterable[Weight], model: ModelConfig, work: Work) -> Iterator[Launch]:
    """A block whose matrices are multiplied one by one, with SwiGLU; under any policy but `none`
    its forward pass is run twice."""
    n, d, f = work.tokens, model.d_model, model.inner.stored
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    forward: list[Launch] = [
        *norm(work, d), *attention(work, d), *residual_add(work, d),
        *norm(work, d), *gated(work, f, silu=True), *residual_add(work, d),
    ]  # fmt: skip
    for weight in matrices:
        d_out, d_in = weight.stored.shape
        forward.append(linear(n, d_in, d_out))
        yield input_gradient(n, d_in, d_out)
        if weight.trainable:
            yield weight_gradient(n, d_in, d_out)
    yield from forward
    if work.policy != "none":
        yield from forward
    yield from norm_backward(work, d)
    yield from attention_backward(work, d)
    yield from norm_backward(work, d)
    yield from gated_backward(work, f, silu=True)
