"""Hand-written gradients against plain torch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from cola_kernels import composed

from cola_train.model import cpu, loss
from cola_train.model.attention import rotary_for, rotary_table, rotate
from cola_train.model.context import sdpa_mask
from cola_train.model.loss import IGNORE_INDEX
from cola_train.model.norm import RMSNorm


def gradients(output, inputs, seed=0):
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(output, inputs, upstream.to(output.dtype))


def test_down_is_separate_linears():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(n, 7, dtype=torch.float64, requires_grad=True) for n in (4, 1, 6)]
    ours = composed.down(x, weights)
    plain = torch.cat([F.linear(x, w) for w in weights], dim=-1)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(gradients(ours, [x, *weights]), gradients(plain, [x, *weights]), strict=True):
        torch.testing.assert_close(a, b)


def test_down_keeps_no_copy_of_the_weights():
    x = torch.randn(2, 7, requires_grad=True)
    weights = [torch.nn.Parameter(torch.randn(4, 7)) for _ in range(3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        composed.down(x, weights)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, *weights)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype):
    """Output and gradients: error against fp64 at most twice that of torch's in this dtype."""
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 40, 48).to(dtype).requires_grad_(), torch.randn(2, 40, 48)
    norm = RMSNorm(48, 1e-6)
    norm.normalise = cpu.rms_norm  # the other is torch's own
    norm.weight.data = torch.rand(48).to(dtype)

    def run(function, *inputs):
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, upstream.to(y.dtype))

    plain = lambda x, w: F.rms_norm(x, w.shape, w, 1e-6)  # noqa: E731
    exact = [t.detach().double().requires_grad_() for t in (x, norm.weight)]
    upstream = upstream.to(dtype)
    truth = run(plain, *exact)
    theirs = run(plain, x, norm.weight)
    before = upstream.clone()
    y = norm(x)
    ours = (y, *torch.autograd.grad(y, (x, norm.weight), upstream))
    assert torch.equal(upstream, before)
    for t, a, b in zip(truth, theirs, ours, strict=True):
        assert b.dtype == dtype
        assert (b - t).norm() <= 2 * (a - t).norm() + torch.finfo(dtype).eps * t.norm()


@pytest.mark.parametrize("gate_silu", [False, True])
def test_gated(gate_silu):
    torch.manual_seed(0)
    g, u = (torch.randn(7, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plain = (F.silu(g) if gate_silu else g) * u
    ours = composed.gated(g, u, gate_silu)
    for a, b in zip(
        (ours, *gradients(ours, [g, u])), (plain, *gradients(plain, [g, u])), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_rotation_is_rotation_by_position():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64, requires_grad=True)
    y = rotate(x, rotary_for(rotary_table(9, 8, 100.0, torch.device("cpu")), x))
    angle = torch.arange(9)[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None].to(torch.complex128)
    z = torch.complex(x[..., :4], x[..., 4:]) * turn
    expected = torch.cat([z.real, z.imag], dim=-1)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradients(y, [x])[0], gradients(expected, [x])[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(packed, dtype):
    """Output and gradients: error against fp64 at most twice that of plain torch in this dtype."""
    torch.manual_seed(0)
    B, T, H, K = 2, 37, 3, 16
    q, k, v = (torch.randn(B, T, H, K).to(dtype).requires_grad_() for _ in range(3))
    documents = (torch.arange(T) // torch.tensor([[9], [14]])).int() if packed else None
    mask = torch.ones(T, T, dtype=torch.bool).tril().expand(B, 1, T, T)
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    upstream = torch.randn(B, T, H, K)

    def plain(*qkv):
        q, k, v = (x.transpose(1, 2) for x in qkv)
        scores = (q @ k.mT * K**-0.5).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    def results(function, *qkv):
        y = function(*qkv)
        return [y.detach(), *torch.autograd.grad(y, qkv, upstream.to(y.dtype))]

    x = torch.empty(B, T, H * K, dtype=dtype)
    make_mask = cpu.product_mask if dtype == torch.bfloat16 else sdpa_mask
    ours = results(make_mask(documents, x).attend, q, k, v)
    exact = results(plain, *(t.detach().double().requires_grad_() for t in (q, k, v)))
    for got, reference, true in zip(ours, results(plain, q, k, v), exact, strict=True):
        assert got.dtype == dtype
        rounding = torch.finfo(torch.float32).eps * true.abs().max()
        allowed = 2 * (reference.double() - true).abs().max() + rounding
        assert (got.double() - true).abs().max() <= allowed


@pytest.mark.parametrize("chunks", ["one", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy(monkeypatch, chunks, dtype):
    """Error against fp64 at most twice that of plain torch in the same dtype."""
    if chunks == "many":
        monkeypatch.setattr(loss, "CHUNK_BYTES", 7 * 50 * 4)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, 13, 16, generator=generator).to(dtype).requires_grad_()
    w = torch.randn(50, 16, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (3, 13), generator=generator)
    targets[1, 4:9] = IGNORE_INDEX

    def plain(h, w):
        logits = F.linear(h, w).flatten(0, 1)
        logits = logits.float() if dtype == torch.bfloat16 else logits
        return F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    h64, w64 = (t.detach().double().requires_grad_() for t in (h, w))
    truth = plain(h64, w64)
    exact = [truth.detach(), *(g * 0.25 for g in torch.autograd.grad(truth, (h64, w64)))]

    def results(value):
        return [value.detach(), *torch.autograd.grad(value * 0.25, (h, w))]

    in_parts = functools.partial(loss.cross_entropy_, softmax_bytes=3 * 50 * 4)
    cross_entropy = in_parts if chunks == "many" else loss.cross_entropy_
    ours = loss.linear_cross_entropy(h, w, targets, cross_entropy)
    assert ours.dtype == torch.float32
    for got, reference, true in zip(results(ours), results(plain(h, w)), exact, strict=True):
        rounding = torch.finfo(torch.float32).eps * true.abs().max()
        allowed = 2 * (reference.double() - true).abs().max() + rounding
        assert (got.double() - true).abs().max() <= allowed


@pytest.mark.parametrize("chunks", ["one", "many"])
def test_z_loss_is_in_the_gradient_and_beside_the_loss(monkeypatch, chunks):
    """Against autograd of its formula in fp64; without gradients there is none."""
    if chunks == "many":
        monkeypatch.setattr(loss, "CHUNK_BYTES", 7 * 50 * 4)
    torch.manual_seed(0)
    h, w = torch.randn(39, 16).requires_grad_(), torch.randn(50, 16).requires_grad_()
    targets = torch.randint(0, 50, (39,))
    targets[4:9] = IGNORE_INDEX
    cross_entropy = functools.partial(loss.cross_entropy_, softmax_bytes=3 * 50 * 4)
    value, z = loss.linear_cross_entropy(h, w, targets, cross_entropy, 0.1)
    ours = torch.autograd.grad(value * 0.25, (h, w))
    assert torch.allclose(value, loss.linear_cross_entropy(h, w, targets, cross_entropy))

    h64, w64 = (t.detach().double().requires_grad_() for t in (h, w))
    logits = F.linear(h64, w64)
    truth = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    z_truth = (0.1 * logits.logsumexp(-1)[targets != IGNORE_INDEX] ** 2).sum()
    gradients = torch.autograd.grad((truth + z_truth) * 0.25, (h64, w64))
    for got, true in zip((z, value, *ours), (z_truth, truth, *gradients), strict=True):
        assert torch.allclose(got.double(), true, rtol=2e-5, atol=1e-5)
    with torch.no_grad():
        assert loss.linear_cross_entropy(h, w, targets, cross_entropy, 0.1).shape == ()


def test_linear_cross_entropy_in_evaluation_and_with_nothing_to_predict():
    h, w = torch.randn(4, 8), torch.randn(10, 8, requires_grad=True)
    targets = torch.full((4,), IGNORE_INDEX)
    value = loss.linear_cross_entropy(h, w, targets)
    assert value.item() == 0
    assert torch.autograd.grad(value, w)[0].abs().max() == 0
    with torch.no_grad():
        assert not loss.linear_cross_entropy(h, w, targets).requires_grad


def test_the_head_gradient_is_summed_by_gemms_in_fp32_where_they_can(monkeypatch):
    """Over many chunks in bf16, as near to fp64 as one product of the whole is; torch has the
    GEMMs on CUDA alone, so they are made here."""

    def mm(a, b, out_dtype):
        return a.to(out_dtype) @ b.to(out_dtype)

    def addmm(total, a, b, out_dtype, *, out, beta=1, alpha=1):
        return out.copy_(total + mm(a, b, out_dtype))

    torch.manual_seed(0)
    h, w = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (60, 50))
    targets = torch.randint(0, 50, (60,))
    exact = [t.detach().double().requires_grad_() for t in (h, w)]
    truth = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    truth = torch.autograd.grad(truth, exact[1])[0]

    def error():
        value = loss.linear_cross_entropy(h, w, targets)
        return (torch.autograd.grad(value, w)[0] - truth).norm()

    whole = error()
    monkeypatch.setattr(loss, "CHUNK_BYTES", 50 * 2)  # a row at a time
    monkeypatch.setattr(loss, "_gemm_adds_in_fp32", lambda x: True)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("mm.dtype", mm, "CPU")
        library.impl("addmm.dtype_out", addmm, "CPU")
        assert error() <= 1.02 * whole
