"""The decode kernels against the reference: in Triton's interpreter with TRITON_INTERPRET=1, and on
a CUDA GPU without it. Run by test_kernels.py in a process of its own,
because the variable must be set before Triton is imported.

Shapes: n rows, d model width, r bottleneck width, F = d_ff.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cola_kernels import UnsupportedError, composed, reference
from cola_kernels.decode_launch import ROWS, SMALL
from cola_kernels.ops import decode
from cola_kernels.support import interpreting
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

OPS = torch.ops.cola_kernels
DEVICE = torch.device("cpu" if interpreting() else "cuda")
randn = functools.partial(torch.randn, device=DEVICE)
EPS = 1e-3
FP32_EPS = torch.finfo(torch.float32).eps

# (n, d, r, F): one row and several; several tiles with a rest and whole ones; widths that are
# multiples of 16 and widths that are not
SHAPES = [(1, 140, 70, 133), (2, 40, 16, 37), (ROWS, 272, 32, 144), (1, 3, 1, 5)]
CASES = [
    *((shape, torch.float32) for shape in SHAPES),
    *((shape, torch.float16) for shape in SHAPES[1:2]),
    *((shape, torch.bfloat16) for shape in SHAPES if not interpreting()),
]


@pytest.fixture(autouse=True)
def nan_filled() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an output that a kernel does not write shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2, 3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class Weights:
    """Of one block."""

    def __init__(self, d: int, r: int, d_ff: int, dtype: torch.dtype) -> None:
        def new(rows: int, columns: int) -> Tensor:
            return (randn(rows, columns) * columns**-0.5).to(dtype)

        self.a, self.b = ([new(*size) for _ in range(3)] for size in ((r, d), (d, r)))
        self.gate, self.up = new(d_ff, r), new(d_ff, r)
        self.down_a, self.down_b = new(r, d_ff), new(d, r)
        self.norm = randn(d).to(dtype)

    def double(self) -> "Weights":
        twice = Weights.__new__(Weights)
        for name, of in vars(self).items():
            setattr(twice, name, [x.double() for x in of] if isinstance(of, list) else of.double())
        return twice


Use = Callable[[Any, Weights, Tensor, Tensor], tuple[Tensor, ...]]  # of ops, weights, x (n, d), z
USES: dict[str, Use] = {
    "down": lambda k, w, x, z: (k.down(x, w.a),),
    "up": lambda k, w, x, z: k.up(z[:, : w.a[0].shape[0]].repeat(1, 2), w.b[:2], None, True),
    "up, residual": lambda k, w, x, z: k.up(z[:, : w.a[0].shape[0]], w.b[:1], x, False),
    "gated_down": lambda k, w, x, z: (k.gated_down(z, w.gate, w.up, w.down_a, True, False),),
    "qkv": lambda k, w, x, z: k.encode(x, w.a, w.b, None, w.norm, EPS),
    "o": lambda k, w, x, z: k.encode(x, w.a[:1], w.b[:1], x, activation=False),
    "mlp": lambda k, w, x, z: (
        k.mlp(x, w.a[:2], [w.gate, w.up], [w.down_a, w.down_b], x, w.norm, EPS, gate_silu=True),
    ),
    "mlp, no silu": lambda k, w, x, z: (
        k.mlp(x, w.a[1:], [w.gate, w.up], [w.down_a, w.down_b], activation=False),
    ),
}


@pytest.mark.parametrize("shape, dtype", CASES)
def test_as_good_as_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Errors against fp64 are at most twice those of the reference in the inputs' dtype, plus one
    rounding; no input is written to, and the same bits come twice."""
    n, d, r, d_ff = shape
    weights = Weights(d, r, d_ff, dtype)
    x, z = randn(n, d).to(dtype), randn(n, 2 * r).to(dtype)
    before = [x.clone(), z.clone()]
    for name, use in USES.items():
        truth = use(reference, weights.double(), x.double(), z.double())
        plain, ours = use(reference, weights, x, z), use(decode, weights, x, z)
        for t, p, o in zip(truth, plain, ours, strict=True):
            assert o.dtype == dtype and o.shape == t.shape
            # 0.25 sqrt(K): of a sum of K terms in fp32, which torch may sum in another order
            rounding = max(torch.finfo(dtype).eps, 0.25 * max(shape) ** 0.5 * FP32_EPS)
            allowed = 2 * (p - t).norm() + rounding * t.norm()
            assert (o - t).norm() <= allowed, f"{name}: {(o - t).norm():.2e} > {allowed:.2e}"
        if not interpreting():
            assert all(map(torch.equal, ours, use(decode, weights, x, z)))
    assert all(map(torch.equal, before, [x, z]))


def test_rows_that_are_many_or_unequal_are_torch_s() -> None:
    weights = Weights(24, 8, 20, torch.float32)
    x, z = randn(ROWS + 1, 24), randn(ROWS + 1, 16)
    for name in ("down", "up", "up, residual", "gated_down"):
        pairs = zip(*(USES[name](k, weights, x, z) for k in (decode, composed)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name
    unequal = [weights.a[0], weights.a[1][:5]]
    assert torch.equal(decode.down(x[:2], unequal), composed.down(x[:2], unequal))
    large = torch.empty(SMALL // 8, 8, device="meta")
    assert [decode.few(torch.empty(n, 8), [large]) for n in (1, 2)] == [True, False]


def test_leading_axes_and_layouts() -> None:
    """A batch of one token, transposed weights, and rows that begin off 16 bytes."""
    weights = Weights(24, 8, 20, torch.float32)
    x = randn(3, 1, 25)[..., 1:]
    expected = reference.encode(x, weights.a[:1], weights.b[:1], x, weights.norm, EPS)
    odd = [[of.t().contiguous().t() for of in matrices[:1]] for matrices in (weights.a, weights.b)]
    torch.testing.assert_close(decode.encode(x, *odd, x, weights.norm, EPS), expected)


def test_registration_flops_and_no_gradient() -> None:
    weights = Weights(7, 3, 5, torch.float32)
    x, z, w = randn(2, 7), randn(2, 6), weights
    torch.library.opcheck(OPS.decode_up, (z, w.b[:2], None, True))
    options, down = (w.norm, EPS, True), [w.down_a, w.down_b]
    torch.library.opcheck(OPS.decode_mlp, (x, w.a[:2], [w.gate, w.up], down, x, *options, False))
    for name, use in USES.items():
        found = []
        for k in (decode, reference):
            with FlopCounterMode(display=False) as count:
                use(k, weights, x, z)
            found.append(count.get_total_flops())
        assert found[0] == found[1], name
    x.requires_grad_()
    for name in ("down", "up, residual", "qkv", "mlp"):
        with pytest.raises(UnsupportedError, match="has no gradient"):
            USES[name](decode, weights, x, z)
        with torch.no_grad():
            USES[name](decode, weights, x, z)


def test_mistakes_name_themselves() -> None:
    w = Weights(7, 3, 5, torch.float32)
    x = randn(2, 7)
    for call, message in [
        (lambda: decode.encode(x, w.a, w.b[:2]), "3 a and 2 b; give it as many"),
        (lambda: decode.encode(x, [], []), "0 a; it takes 1 to 3"),
        (lambda: decode.encode(x, w.b, w.a), r"x has shape \(2, 7\), not \(2, 3\)"),
        (lambda: decode.encode(x, w.a, w.b, x), "residual with 3 weights"),
        (lambda: decode.encode(randn(5, 7), w.a, w.b), "x has 5 rows; it takes 1 to 4"),
        (lambda: decode.encode(x[0], w.a, w.b), "it needs an axis of rows"),
        (lambda: decode.encode(x.double(), w.a, w.b), "x is torch.float64"),
        (lambda: decode.encode(x, w.a, w.b, norm=w.norm.half()), "norm has dtype torch.float16"),
        (lambda: decode.mlp(x, w.a, w.b, [w.down_a, w.down_b]), "3 a, 3 b and 2 down"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            call()


@pytest.mark.skipif(interpreting(), reason="the interpreter has no CUDA graphs")
@pytest.mark.parametrize("n", [1, ROWS])
def test_a_graph_replayed(n: int) -> None:
    """Of three blocks one after the other, with weights that programs ask for before their turn,
    on other inputs each time: what the ops give one by one, bit for bit."""
    dtype = torch.bfloat16
    blocks = [Weights(1024, 256, 2736, dtype) for _ in range(3)]
    x = randn(n, 1024).to(dtype)

    def step() -> Tensor:
        y = x
        for weights in blocks:
            q, *_ = USES["qkv"](decode, weights, y, y)
            (o,) = decode.encode(q, weights.a[:1], weights.b[:1], y)
            (y,) = USES["mlp"](decode, weights, o, o)
        return y

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    for _ in range(20):
        x.copy_(randn(n, 1024))
        expected = step()
        for _ in range(10):
            y.fill_(float("nan"))
            graph.replay()
            assert torch.equal(y, expected)
