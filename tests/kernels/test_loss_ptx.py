"""The loss's kernel as it is compiled, run by the interpreter of PTX: also in bf16, which Triton's
own gets wrong."""

import pytest
import torch
from cola_kernels import reference
from cola_kernels.support import interpreting

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
# two blocks of columns; rows aligned and not
@pytest.mark.parametrize(("V", "z_loss"), [(9000, 0.0), (9003, 0.0), (9003, 0.01)])
def test_the_loss_as_compiled(
    arch: str, dtype: torch.dtype, V: int, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right to one rounding; no race is found, and each element is written once."""
    from cola_kernels.cross_entropy import cross_entropy_launch
    from cola_kernels.tools.ptx.run import execute

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
    torch.manual_seed(0)
    logits, targets = torch.randn(3, V).to(dtype), torch.tensor([V - 1, -100, 5])
    losses, exact = torch.full((2, 3) if z_loss else (3,), float("nan")), logits.double()
    loss = reference.cross_entropy_(exact, targets, True, z_loss=z_loss)
    launch = cross_entropy_launch(logits, targets, losses, True, -100, z_loss)
    run = execute(launch, arch, ["logits_ptr", "losses_ptr"])
    assert ((losses.double().sum(-1) - loss).abs() <= 1e-6 * loss).all()
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # of subnormal numbers
    bound = torch.finfo(dtype).eps / 2 + 2**-20  # one rounding of what was computed in fp32
    assert ((logits.double() - exact).abs() <= bound * exact.abs() + step).all()
    for name in ("logits_ptr", "losses_ptr"):
        assert (run.stores(name)[0] == 1).all()
