"""The ops of train.precision=fp8, as a CPU emulates them, against fp64 and torch's fp8 matmul.

e4m3 has three bits after the point: a number is rounded by at most 2^-4 of itself, or, where it is
small beside its row's largest, by half of e4m3's least step, 2^-10, times the row's scale.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from cola_kernels import UnsupportedError, composed, fp8, fp8_unavailable, reference, select
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

BF16, FP64 = torch.bfloat16, torch.float64
N = 70  # rows
Run = Callable[..., Tensor | Sequence[Tensor]]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).to(BF16).requires_grad_()


def results(function: Run, inputs: Sequence[Tensor], dys: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, then every gradient."""
    out = function(*inputs)
    ys = [out] if isinstance(out, Tensor) else list(out)
    grads = torch.autograd.grad(ys, inputs, [dy.to(y.dtype) for dy, y in zip(dys, ys, strict=True)])
    return [y.detach() for y in ys] + list(grads)


def rounding(x: Tensor) -> Tensor:
    """The most by which `quantised` changes each number of x (n, k)."""
    scales = fp8.row_scales(x).double()
    return torch.maximum(2**-4 * x.double().abs(), 2**-10 * scales)


def product_bound(a: Tensor, b: Tensor) -> Tensor:
    """The most by which a b^T of rounded rows, in bf16, is off; a (n, k), b (m, k)."""
    da, db, a, b = rounding(a), rounding(b), a.double().abs(), b.double().abs()
    whole = a @ b.t()
    off = a @ db.t() + da @ b.t() + da @ db.t()
    return off + 2**-8 * (whole + off)  # bf16's rounding of the result, and fp32's of the sums


def test_scales_are_powers_of_two_and_nothing_overflows() -> None:
    torch.manual_seed(0)
    x = (torch.randn(400, 64) * torch.logspace(-25, 25, 400)[:, None]).to(BF16)
    x[7], x[8, 3], x[9] = 0, 448 * 2.0**20, 2.0**-120
    x[8] = x[8].clamp(-448 * 2.0**20, 448 * 2.0**20)
    scales = fp8.row_scales(x)
    q = fp8.quantised(x, scales)
    assert torch.equal(torch.frexp(scales).mantissa, torch.full_like(scales, 0.5))
    largest = q.float().abs().amax(-1)
    assert largest.max() == 448 and largest[8] == 448 and scales[8] == 2.0**20
    assert largest[7] == largest[9] == 0 and torch.cat([largest[:7], largest[10:]]).min() > 223
    back = fp8.dequantised(q, scales)
    assert torch.equal(back.double(), q.double() * scales.double())
    rows = torch.arange(400) != 9
    assert ((back.double() - x.double()).abs() <= rounding(x))[rows].all()
    for bad in (torch.inf, torch.nan):  # the step must see them, and skip
        x[5, 2] = bad
        scales = fp8.row_scales(x)
        assert not fp8.dequantised(fp8.quantised(x, scales), scales)[5].isfinite().all()


@pytest.mark.parametrize(("n", "k", "m"), [(70, 256, 96), (1, 16, 16), (33, 80, 48)])
def test_the_emulation_is_torchs_fp8_matmul(n: int, k: int, m: int) -> None:
    """Equal to the order of the sums: an ulp of bf16 at most."""
    torch.manual_seed(0)
    a = (torch.randn(n, k) * torch.logspace(-12, 12, n)[:, None]).to(BF16)
    b = (torch.randn(m, k) * torch.rand(m, 1)).to(BF16)
    a[n // 2] = 0
    a_scales, b_scales = fp8.row_scales(a), fp8.row_scales(b)
    operands = (fp8.quantised(a, a_scales), a_scales, fp8.quantised(b, b_scales), b_scales)
    ours = fp8.emulated_product(*operands).double()
    theirs = fp8.scaled_product(*operands, fast=False).double()
    sums = a.double().abs() @ b.double().abs().t()
    assert ((ours - theirs).abs() <= 2**-7 * theirs.abs() + k * 2**-23 * sums).all()
    assert (ours[n // 2] == 0).all()


def test_torch_takes_the_operands_on_a_gpu() -> None:
    """By its own check of layouts, scales and widths, on tensors that are not there."""
    bf16 = {"device": "cuda", "dtype": BF16}
    with FakeTensorMode(), torch.no_grad():
        x, weights = torch.empty(2, 20, 64, **bf16), [torch.empty(48, 64, **bf16)] * 2
        y = fp8._forward(x, weights, None)
        assert (y.shape, y.dtype, y.device.type) == ((2, 20, 96), BF16, "cuda")
        dy, w = torch.empty(40, 96, **bf16), torch.empty(64, 96, **bf16).to(fp8.E4M3)
        scales = fp8.row_scales(dy)
        dx = fp8.scaled_product(fp8.quantised(dy, scales), scales, w, scales.new_ones(64, 1), False)
        assert dx.shape == (40, 64)
        with pytest.raises(RuntimeError, match="scale"):
            fp8.scaled_product(w, scales, w, scales, fast=False)


@pytest.mark.gpu
def test_a_gpu_computes_what_a_cpu_emulates() -> None:
    """But for the fast sums of its forward pass, which keep some 14 bits."""
    if (reason := fp8_unavailable("cuda")) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    inputs = [random(300, 512), random(256, 512), random(128, 512)]
    dys = [torch.randn(300, width).to(BF16) for width in (256, 128)]
    linear = lambda x, *weights: fp8.linear(x, weights)  # noqa: E731
    there = [t.detach().cuda().requires_grad_() for t in inputs]
    ours = results(linear, there, [dy.cuda() for dy in dys])
    for mine, emulated in zip(ours, results(linear, inputs, dys), strict=True):
        assert (mine.cpu().double() - emulated.double()).norm() < 2**-7 * emulated.double().norm()


@pytest.mark.parametrize("widths", [(32,), (32, 16, 48)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear_and_down(widths: tuple[int, ...], with_residual: bool) -> None:
    """Output and input's gradient within the bound of their roundings, number by number; the
    weights' gradients those of bf16, bit for bit."""
    if with_residual and len(widths) > 1:
        with pytest.raises(UnsupportedError, match="residual with 3 weights"):
            fp8.linear(random(2, 64), [random(w, 64) for w in widths], random(2, 32))
        return
    torch.manual_seed(0)
    x, weights = random(2, N // 2, 64), [random(width, 64) for width in widths]
    with torch.no_grad():
        x[0, 3] = 0
        x[1, 5] *= 2.0**60  # beyond e4m3's range, and beyond that of one scale for all
        weights[0][1] *= 2.0**-30
    inputs = [x, *weights, *([random(2, N // 2, widths[0])] if with_residual else [])]
    dys = [torch.randn(2, N // 2, width).to(BF16) for width in widths]

    def run(ops: object) -> list[Tensor]:
        split = lambda x, *w: ops.linear(x, w[: len(widths)], *w[len(widths) :])  # noqa: E731
        return results(split, inputs, dys)

    ours, plain = run(fp8), run(composed)
    exact = [F.linear(x.double(), weight.double()) for weight in weights]
    if with_residual:
        exact[0] = exact[0] + inputs[-1].double()
        assert torch.equal(ours[-1], dys[0])
    rows, W, dy = x.flatten(0, 1), torch.cat(weights), torch.cat(dys, -1).flatten(0, 1)
    y = torch.cat(ours[: len(widths)], -1).flatten(0, 1)
    error = (y.double() - torch.cat(exact, -1).flatten(0, 1)).abs()
    bound = product_bound(rows, W)
    if with_residual:
        bound = bound + 2**-8 * (torch.cat(exact, -1).flatten(0, 1).abs() + bound)
    assert (error <= bound).all()
    # the gradient is that of dy, scaled as W's rows are, and W's rows without their scales
    scales = fp8.row_scales(W)
    scaled = (dy.double() * scales.double().t()).to(BF16)
    dx = ours[len(widths)].flatten(0, 1)
    dw_off = rounding(W) / scales.double()
    a, b = scaled.double().abs(), W.double().abs() / scales.double()
    off = a @ dw_off + rounding(scaled) @ b + rounding(scaled) @ dw_off
    error = (dx.double() - dy.double() @ W.double()).abs()
    assert (error <= off + 2**-8 * (a @ b + off)).all()
    for mine, theirs in zip(ours[len(widths) + 1 :], plain[len(widths) + 1 :], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("gate_silu", [False, True])
def test_from_bottleneck_to_bottleneck(activation: bool, gate_silu: bool) -> None:
    """A product is off by about 3.8 % of its norm: e4m3's rounding of two random operands. What
    has several products before it is off by the root of their number times as much."""
    torch.manual_seed(0)
    rows = torch.logspace(-3, 3, N)[:, None]

    def inputs() -> list[Tensor]:
        z = (torch.randn(N, 64) * (1 if activation else rows)).to(BF16).requires_grad_()
        return [z, random(96, 32), random(96, 32), random(48, 96)]

    def off(
        function: str,
        inputs: Sequence[Tensor],
        width: int,
        call: Callable[..., Run],
        products: int = 1,
    ) -> None:
        dys = [torch.randn(N, width).to(BF16)]
        ours = results(call(getattr(fp8, function)), inputs, dys)
        doubles = [t.detach().double().requires_grad_() for t in inputs]
        exact = results(call(getattr(reference, function)), doubles, dys)
        for mine, true in zip(ours, exact, strict=True):
            assert mine.dtype == BF16
            assert (mine.double() - true).norm() < 0.045 * products**0.5 * true.norm()
        assert (ours[0].double() - exact[0]).norm() > 0.01 * exact[0].norm()  # it is fp8

    middle = lambda op: lambda *t: op(*t, activation, gate_silu)  # noqa: E731
    # behind z's gradient: g, u, dp, and the products with B_g and B_u; f' has a rounded g again
    off("gated_down", inputs(), 48, middle, products=6)
    z, residual = random(N, 64), random(N, 32)
    up = lambda op: lambda z, B, C: torch.cat(op(z, [B, C], None, activation), -1)  # noqa: E731
    off("up", [z, random(16, 32), random(32, 32)], 48, up)
    add = lambda op: lambda z, B, y: op(z, [B], y, activation)  # noqa: E731
    off("up", [z, random(32, 64), residual], 32, add)


def test_a_registered_op_keeps_its_inputs_alone() -> None:
    torch.manual_seed(0)
    x, weights = random(2, 5, 32), [random(16, 32), random(48, 32)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fp8.down(x, weights)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, *weights)}
    opcheck(torch.ops.cola_kernels.fp8_linear_add, (x, weights[:1], random(2, 5, 16)))


def test_compiled_it_keeps_no_rounded_weights() -> None:
    """torch.compile sees through the products' ops, so it may fuse the casts; what it keeps beside
    the inputs is no larger than a row's or a weight's scales."""
    torch.manual_seed(0)
    graphs: list[torch.fx.GraphModule] = []
    kept: list[Tensor] = []

    def capture(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return make_boxed_func(graph)

    def layer(x: Tensor, A: list[Tensor], B: list[Tensor]) -> Tensor:
        return torch.cat(fp8.up(fp8.down(x, A), B), -1)

    x, A = random(3, 5, 64), [random(16, 64), random(32, 64)]
    B = [random(64, 16), random(48, 32)]
    partition = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=capture, bw_compiler=capture, partition_fn=partition)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = compiled(x, A, B)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *A, *B], dy)
    plain = layer(x, A, B)
    torch.testing.assert_close(y, plain, rtol=0, atol=0)
    torch.testing.assert_close(ours, torch.autograd.grad(plain, [x, *A, *B], dy), rtol=0, atol=0)
    forward, backward = ([str(node.target) for node in graph.graph.nodes] for graph in graphs)
    assert not [name for name in forward if "cola_kernels" in name]
    # A's and each of B's, into which it does not see
    assert [name for name in backward if "cola_kernels" in name] == 3 * [
        "cola_kernels.fp8_input_gradient.default"
    ]
    inputs = {t.data_ptr() for t in (x, *A, *B)}
    z_bytes = 2 * 15 * (16 + 32)
    for t in kept:
        assert t.data_ptr() in inputs or (t.nbytes <= z_bytes and t.dtype != fp8.E4M3)


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match=r"fp8\.down: x is torch.float32"):
        fp8.down(torch.randn(2, 16), [random(16, 16)])
    with pytest.raises(UnsupportedError, match=r"weights\[0\] has shape \(24, 16\).*of 16"):
        fp8.linear(random(2, 16), [random(24, 16)])
    with pytest.raises(UnsupportedError, match="have no fp8; use kernels=torch"):
        select("triton", "cpu", fp8=True)
    assert select("torch", "cpu", fp8=True) is fp8
    assert {*fp8.__all__} == {*composed.__all__}
