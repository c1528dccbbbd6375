"""A dense model's weights as bottlenecks', against closed forms."""

import pytest
import torch
from helpers import micro_batches, values_config
from torch import Tensor

from cola_train.convert.factor import (
    Fit,
    Moments,
    bottleneck,
    convert,
    empty_model,
    factor,
    spread,
)
from cola_train.errors import UserError
from cola_train.model.llama import Llama

CPU = torch.device("cpu")


def anisotropic(d: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """A second moment and its square root; of that rank, if one is given."""
    torch.manual_seed(0)
    root = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    root = root * torch.logspace(0, -3, d, dtype=torch.float64)
    root = root if rank is None else root[:, :rank]
    return root @ root.t(), root


def error(W: Tensor, A: Tensor, B: Tensor, C: Tensor) -> float:
    """E|W x - B A x|^2."""
    missing = W - B @ A
    return (missing @ C * missing).sum().item()


@pytest.mark.parametrize("d_out", [8, 24, 60])
def test_the_error_is_the_tail_of_the_singular_values(d_out):
    """Eckart and Young's, of W C^(1/2); and plain SVD's of W is larger."""
    C, root = anisotropic(24)
    W = torch.randn(d_out, 24, dtype=torch.float64)
    for rank in (1, 5, 8):
        A, B = factor(W, C, rank)
        assert A.shape == (rank, 24) and B.shape == (d_out, rank)
        tail = torch.linalg.svdvals(W @ root)[rank:].square().sum().item()
        assert error(W, A, B, C) == pytest.approx(tail, rel=1e-9, abs=1e-12)
        if rank < min(W.shape):
            plain = error(W, *factor(W, torch.eye(24), rank), C)
            assert plain > 1.5 * error(W, A, B, C)
    A, B = factor(W, C, min(W.shape))
    torch.testing.assert_close(B @ A, W)


def test_a_singular_second_moment():
    """Of fewer positions than features, or of none but zeros."""
    C, _ = anisotropic(24, rank=3)
    W = torch.randn(24, 24, dtype=torch.float64)
    assert error(W, *factor(W, C, 3), C) < 1e-12
    for of in (C, torch.zeros_like(C)):
        for weight in (*factor(W, of, 6), *spread(*factor(W, of, 6), of, 0.3, "key")):
            assert weight.isfinite().all()


def test_a_fit_is_held_to_the_weight_where_the_data_say_nothing():
    torch.manual_seed(0)
    W, true = torch.randn(2, 5, 16, dtype=torch.float64)
    few, many = torch.randn(4, 16, dtype=torch.float64), torch.randn(99, 16, dtype=torch.float64)
    torch.testing.assert_close(Moments([(few, few @ W.t())]).fitted(W), W)
    torch.testing.assert_close(
        Moments([(many[:50], many[:50] @ true.t()), (many[50:], many[50:] @ true.t())]).fitted(
            W, ridge=1e-12
        ),
        true,
    )
    fitted = Moments([(few, few @ true.t())]).fitted(W, ridge=1e-6)
    near = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(few @ fitted.t(), few @ true.t(), **near)
    unseen = torch.linalg.svd(few)[2][4:]
    torch.testing.assert_close(unseen @ fitted.t(), unseen @ W.t(), **near)


def test_silu_on_the_bottleneck():
    """The fitted start is near the best that is linear; what ignores SiLU is not."""
    _, root = anisotropic(24)
    x = (torch.randn(4000, 24, dtype=torch.float64) @ root.t()).float()
    W = torch.randn(40, 24)
    y = x @ W.t()

    def error_of(fit: Fit, silu: bool = True) -> float:
        A, B = fit.bottlenecks(lambda: [(x, y)], {"q": W}, "layer")["q"]
        return ((bottleneck(x, A, B, silu) - y).square().sum() / y.square().sum()).item()

    linear = error_of(Fit({"q": 8}, False, True), silu=False)
    small, middle, large = (error_of(Fit({"q": 8}, True, True, size)) for size in (0.01, 0.3, 3.0))
    assert linear < small < 1.01 * linear
    assert small < middle < large < 0.7 * error_of(Fit({"q": 8}, False, True))
    A, B = Fit({"q": 8}, False, True).bottlenecks(lambda: [(x, y)], {"q": W}, "layer")["q"]
    slope_alone = spread(A.double(), B.double(), Moments([(x, y)]).second(), 3.0, "layer.q")
    A, B = (weight.float() for weight in slope_alone)
    assert large < 0.5 * ((bottleneck(x, A, B, True) - y).square().sum() / y.square().sum()).item()


@pytest.fixture(scope="module")
def dense() -> Llama:
    model = empty_model(values_config(method={"name": "full"}), CPU)
    for name, weight in model.named_parameters():
        if name.startswith("layers"):
            weight.mul_(4)  # so that blocks do something
    return model


ALL_32 = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 32)


def difference(dense: Llama, fit: Fit, method: dict[str, object]) -> float:
    """Mean square of the logits' difference, in parts of theirs, on tokens that were not fitted."""
    low = empty_model(values_config(method={"rank": 32, **method}), CPU)
    done: list[int] = []
    convert(dense, low, micro_batches(0, rows=16, size=8), fit, done.append)
    assert done == [1, 2]
    tokens = micro_batches(1)[0].inputs
    logits = dense(tokens)
    return ((low(tokens) - logits).square().sum() / logits.square().sum()).item()


def test_a_model_of_full_rank_computes_the_same(dense):
    plain, small = (
        Fit(ALL_32, silu=False, gate_silu=True),
        Fit(ALL_32, silu=True, gate_silu=True, size=0.01),
    )
    assert difference(dense, plain, {"name": "low_rank"}) < 1e-8
    assert difference(dense, small, {"name": "cola", "activation": "both"}) < 1e-2


def test_each_projection_has_its_rank(dense):
    """Of a dense model whose q has rank 5 nothing is lost where q's bottleneck has."""
    thin = empty_model(values_config(method={"name": "full"}), CPU)
    thin.load_state_dict(dense.state_dict())
    for name, weight in thin.named_parameters():
        if name.endswith(".q"):
            U, S, V = torch.linalg.svd(weight)
            weight.copy_(U[:, :5] * S[:5] @ V[:5])
    method = {"name": "low_rank", "rank": 32, "ranks": {"q": 5}}
    fit = Fit.of(values_config(method=method))
    assert difference(thin, fit, method) < 1e-8 < 1e-3 < difference(dense, fit, method)


def test_a_method_without_bottlenecks_is_refused():
    for method, said in (
        ({"name": "full"}, "method=full: a dense model becomes"),
        ({"name": "low_rank", "dlr": 0.5}, "leave the other options"),
    ):
        with pytest.raises(UserError, match=said):
            Fit.of(values_config(method=method))
