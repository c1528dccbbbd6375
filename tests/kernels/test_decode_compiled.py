"""The decode kernels as they are compiled: what the machine code takes, and what it does, executed
on the CPU, in bf16 too, which Triton's interpreter gets wrong.

Shapes: n rows, d model width, r bottleneck width, F = d_ff.
"""

import sys

import pytest
import torch
import torch.nn.functional as F
from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import Target
from torch import Tensor

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
EPS = 1e-5


def test_the_mlp_compiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No spills, and weights loaded 16 bytes at a time."""
    from cola_kernels.tools import decode_report

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
    monkeypatch.setattr(sys, "argv", ["", "--arch", "sm_90", "--brief"])
    status = decode_report.main()
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "| gate_up_kernel | 4 rows | 1b | bf16 |" in said.out


@pytest.mark.parametrize(
    "arch, n, dtype",
    [("sm_90", 1, torch.bfloat16), ("sm_90", 3, torch.bfloat16), ("sm_80", 4, torch.float16)],
)
def test_right_and_race_free(
    arch: str, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PTX of three launches, block by block: as near to fp64 as the reference, every element
    stored once."""
    from cola_kernels.decode_launch import gate_up_launch, project_launch
    from cola_kernels.tools.ptx.run import execute

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    torch.manual_seed(0)
    d, r, d_ff, target = 272, 48, 80, Target(arch, 4)

    def new(*size: int) -> Tensor:
        return (torch.randn(*size) * size[-1] ** -0.5).to(dtype)

    def compare(launch: Launch, name: str, truth: Tensor, plain: Tensor) -> None:
        assert (execute(launch, arch, [name]).stores(name)[0] == 1).all()
        y = launch.arguments[name]
        assert isinstance(y, Tensor)
        allowed = 2 * (plain - truth).norm() + torch.finfo(dtype).eps * truth.norm()
        assert (y - truth).norm() <= allowed

    def nan(width: int) -> Tensor:
        return torch.full((n, width), float("nan"), dtype=dtype)

    def normed(x: Tensor, norm: Tensor) -> Tensor:
        return F.rms_norm(x, norm.shape, norm, EPS)

    x, h, norm = new(n, d), new(n, 3 * r), torch.randn(d).to(dtype)
    a, b, up, exact = (
        [new(r, d) for _ in range(3)],
        [new(d, r) for _ in range(3)],
        new(d_ff, r),
        Tensor.double,
    )
    compare(
        project_launch(x, a, nan(3 * r), target, norm=norm, eps=EPS, write_silu=True), "y_ptr",
        F.silu(F.linear(normed(exact(x), exact(norm)), exact(torch.cat(a)))),
        F.silu(F.linear(normed(x, norm), torch.cat(a))),
    )  # fmt: skip
    residual = new(n, d)
    compare(
        project_launch(h[:, :r].contiguous(), b[:1], nan(d), target, split=True, read_silu=True,
                       residual=residual), "y_ptr",
        F.linear(F.silu(exact(h[:, :r])), exact(b[0])) + residual,
        F.linear(F.silu(h[:, :r]), b[0]) + residual,
    )  # fmt: skip

    def gated(h: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        h_g, h_u = h.chunk(2, dim=-1)
        return F.silu(F.linear(h_g, gate)) * F.linear(h_u, up)

    h, gate = h[:, : 2 * r].contiguous(), new(d_ff, r)
    launch = gate_up_launch(h, gate, up, nan(d_ff), False, True, target)
    compare(launch, "p_ptr", gated(exact(h), exact(gate), exact(up)), gated(h, gate, up))
