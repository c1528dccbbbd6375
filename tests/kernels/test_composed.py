"""Ops made of torch's own kernels, against plain torch in fp64."""

import functools

import pytest
import torch
import torch.nn.functional as F
from cola_kernels import UnsupportedError, composed

random = functools.partial(torch.randn, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("widths", [(4,), (4, 1, 6)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_linear_is_separate_linears(widths: tuple[int, ...], with_residual: bool) -> None:
    torch.manual_seed(0)
    x, weights = random(3, 5, 7), [random(width, 7) for width in widths]
    residual = random(3, 5, widths[0]) if with_residual else None
    if with_residual and len(widths) > 1:
        with pytest.raises(UnsupportedError, match="residual with 3 weights"):
            composed.linear(x, weights, residual)
        return
    ours = composed.linear(x, weights, residual)
    plain = tuple(F.linear(x, weight) for weight in weights)
    inputs = [x, *weights]
    if residual is not None:
        plain = (plain[0] + residual,)
        inputs.append(residual)
    torch.testing.assert_close(ours, plain)
    dys = [torch.randn_like(y) for y in plain]
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, dys), torch.autograd.grad(plain, inputs, dys)
    )


@pytest.mark.parametrize("projections", [1, 3])
def test_linear_keeps_no_copy_of_the_weights(projections: int) -> None:
    x, weights = random(2, 7), [random(4, 7) for _ in range(projections)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        composed.linear(x, weights)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, *weights)}


def test_fused_has_the_same_functions_and_what_does_not_fuse() -> None:
    pytest.importorskip("triton")
    from cola_kernels import fused, fused_wide

    for name in ("linear", "gated", "down"):
        assert getattr(fused, name) is getattr(composed, name)
    assert {*fused.__all__} == {*fused_wide.__all__} == {*composed.__all__}
