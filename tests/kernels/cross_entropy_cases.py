"""The fused loss against the reference: in Triton's interpreter with TRITON_INTERPRET=1, on a
CUDA GPU without it. Run by test_kernels.py in a process of its own, because the variable must be
set before Triton is imported.

Shapes: n rows, V columns.
"""

import pytest
import torch
import torch.nn.functional as F
from cola_kernels import UnsupportedError, reference, support
from cola_kernels.cross_entropy import CONFIG
from cola_kernels.launch import gathered
from cola_kernels.ops.cross_entropy import cross_entropy_, warm_up
from cola_kernels.recording import record
from cola_kernels.support import interpreting, target
from torch import Tensor

DEVICE = torch.device("cpu" if interpreting() else "cuda")
DTYPES = (torch.float32, torch.float16) if interpreting() else support.DTYPES
IGNORE = -100
BLOCK = CONFIG.block_n


def case(n: int, V: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor]:
    """Every third row is ignored; the first and the last column are among the targets; one row's
    logits rise, so that each block has a new largest one."""
    torch.manual_seed(0)
    logits = (torch.randn(n, V, device=DEVICE) * scale).to(dtype)
    logits[2] = logits[2].sort().values
    targets = torch.randint(0, V, (n,), device=DEVICE)
    targets[0], targets[-1] = 0, V - 1
    targets[1::3] = IGNORE
    return logits, targets


# less than a block, several with a rest, one whole; logits as large as fp16 has them
@pytest.mark.parametrize("V", [5, BLOCK + 33, BLOCK])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient(V: int, scale: float, dtype: torch.dtype) -> None:
    """Error against fp64 at most twice that of torch's own in fp32, and one rounding to dtype."""
    logits, targets = case(6, V, dtype, scale)
    if scale > 1:
        logits.clamp_(-1e4, 1e4)
        logits[3] = -1e4  # no column is larger than another
    exact, plain = logits.double(), logits.to(torch.float32, copy=True)
    truth, theirs = (reference.cross_entropy_(x, targets, True) for x in (exact, plain))
    again = logits.clone()
    read = cross_entropy_(again, targets, False)
    assert torch.equal(again, logits)
    ours = cross_entropy_(logits, targets, True)
    assert ours.dtype == torch.float32 and torch.equal(ours, read)
    eps = torch.finfo(torch.float32).eps
    assert (ours - truth).abs() <= 2 * (theirs - truth).abs() + 8 * eps * truth.abs()
    # ex2.approx and the exponent's rounding: a few units in the last place of fp32
    rounding = torch.finfo(dtype).eps + 64 * eps
    allowed = 2 * (plain - exact).abs() + rounding * exact.abs() + torch.finfo(dtype).tiny
    assert ((logits.double() - exact).abs() <= allowed).all()
    assert (logits[1::3] == 0).all()


@pytest.mark.parametrize("V", [5, BLOCK + 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_z_loss(V: int, dtype: torch.dtype) -> None:
    """Against autograd of its formula in fp64, and the reference against it too."""
    c = 0.03
    logits, targets = case(6, V, dtype, 3.0)
    exact = logits.double().requires_grad_()
    valid = targets != IGNORE
    terms = torch.stack(
        [
            F.cross_entropy(exact, targets, ignore_index=IGNORE, reduction="sum"),
            (c * exact.logsumexp(-1)[valid] ** 2).sum(),
        ]
    )
    (gradient,) = torch.autograd.grad(terms.sum(), exact)
    in_fp64 = logits.double()
    assert torch.allclose(reference.cross_entropy_(in_fp64, targets, True, z_loss=c), terms)
    assert torch.allclose(in_fp64, gradient, rtol=1e-12, atol=1e-15)
    read = cross_entropy_(logits.clone(), targets, False, z_loss=c)
    ours = cross_entropy_(logits, targets, True, z_loss=c)
    assert ours.shape == (2,) and torch.equal(ours, read)
    assert torch.allclose(ours.double(), terms, rtol=1e-6)
    bound = torch.finfo(dtype).eps * gradient.abs() + 1e-6  # p - 1 cancels in fp32
    assert ((logits.double() - gradient).abs() <= bound).all()
    assert (logits[1::3] == 0).all()


def test_rows_of_a_wider_matrix_and_nothing_else_is_written() -> None:
    logits, targets = case(4, 21, torch.float32, 1.0)
    wide = torch.full((4, 40), 7.0, device=DEVICE)
    wide[:, :21] = logits
    losses = [cross_entropy_(x, targets, True) for x in (wide[:, :21], logits)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(wide[:, :21], logits)
    assert (wide[:, 21:] == 7).all()
    assert cross_entropy_(logits[:0], targets[:0], True) == 0


def test_nothing_to_predict_hides_what_the_logits_are() -> None:
    logits = torch.full((2, 9), float("nan"), device=DEVICE)
    assert cross_entropy_(logits, torch.full((2,), IGNORE, device=DEVICE), True) == 0
    assert (logits == 0).all()


@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_that_is_no_column_is_no_number(target: int) -> None:
    """Not the memory beside the row: a step whose loss is no number is skipped."""
    logits = torch.zeros(1, 9, device=DEVICE)
    assert cross_entropy_(logits, torch.tensor([target], device=DEVICE), False).isnan()


def test_registration_and_mistakes() -> None:
    logits, targets = case(4, 21, torch.float32, 1.0)
    for gradients in (False, True):
        op = torch.ops.cola_kernels.cross_entropy_
        for z_loss in (0.0, 0.1):
            torch.library.opcheck(op, (logits.clone(), targets, gradients, IGNORE, z_loss))
    for x, t, message in [
        (logits.t(), targets, "rows are contiguous"),
        (logits[0], targets, "must be a matrix"),
        (logits.double(), targets, "logits is torch.float64"),
        (logits, targets[1:], r"contiguous int64 \(4,\)"),
        (logits, targets.int(), "targets are torch.int32"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            cross_entropy_(x, t, True)


def test_what_is_prepared_is_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, as it is looked up then: by dtype, widths and switches."""
    prepared = []
    monkeypatch.setattr(
        "cola_kernels.recording.warm_up",
        lambda function, _: prepared.extend(record(function, target("test", DEVICE))),
    )
    warm_up(21, torch.float32, DEVICE, z_loss=1e-4)
    logits, targets = case(4, 21, torch.float32, 1.0)
    with gathered() as launched:
        cross_entropy_(logits, targets, True, z_loss=1e-4)
        cross_entropy_(logits, targets, False)
    assert [(x.kernel, x.numbers, x.config) for x in prepared] == [
        (x.kernel, x.numbers, x.config) for x in launched
    ]
    assert {x.tensors[0].dtype for x in prepared} == {torch.float32} and len(prepared) == 2
