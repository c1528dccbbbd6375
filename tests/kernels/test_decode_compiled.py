"""The decode kernels as they are compiled: what the machine code takes, and what it does, executed
on the CPU, in bf16 too, which Triton's interpreter gets wrong.

Shapes: n rows, d model width, r bottleneck width, F = d_ff.
"""

import sys

import pytest
import torch
from cola_kernels import reference
from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import Target
from torch import Tensor

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
EPS = 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arch", "sm_90", "--brief"],
        *(pytest.param(["--arch", arch], marks=pytest.mark.slow) for arch in ("sm_80", "sm_90")),
    ],
)
def test_every_launch_compiles(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No spills, weights loaded 16 bytes at a time, room for the programs of a barrier."""
    from cola_kernels.tools import decode_report

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    status = decode_report.main()
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "| mlp_kernel | together, 16 rows, phases (0, 4) | 1b | bf16 |" in said.out


def run(launches: list[Launch], arch: str, outputs: list[tuple[str, Tensor]]) -> None:
    """Each launch's PTX, block by block: every element of its output is stored once."""
    from cola_kernels.tools.ptx.run import execute

    for launch, (name, _) in zip(launches, outputs, strict=True):
        assert (execute(launch, arch, [name]).stores(name)[0] == 1).all()


@pytest.mark.parametrize(
    "arch, n, dtype",
    [
        ("sm_90", 1, torch.bfloat16),
        ("sm_90", 5, torch.bfloat16),
        *(
            pytest.param(arch, n, dtype, marks=pytest.mark.slow)
            for arch, n, dtype in [
                ("sm_90", 16, torch.bfloat16), ("sm_80", 1, torch.bfloat16),
                ("sm_80", 16, torch.bfloat16), ("sm_80", 5, torch.float16),
                ("sm_90", 5, torch.float32),
            ]
        ),
    ],
)  # fmt: skip
def test_right_and_race_free(
    arch: str, n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of its phases, each a launch of its own: as near to fp64 as the reference."""
    from cola_kernels.decode_launch import encode_launches, mlp_launches

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    torch.manual_seed(0)
    d, r, d_ff, target = 272, 48, 80, Target(arch, 4)

    def new(*size: int) -> Tensor:
        return (torch.randn(*size) * size[-1] ** -0.5).to(dtype)

    def nan(width: int) -> Tensor:
        return torch.full((n, width), float("nan"), dtype=dtype)

    def compare(y: Tensor, truth: Tensor, plain: Tensor) -> None:
        allowed = 2 * (plain - truth).norm() + torch.finfo(dtype).eps * truth.norm()
        assert (y - truth).norm() <= allowed

    x, norm = torch.randn(n, d).to(dtype), torch.randn(d).to(dtype)
    a, b, exact = [new(r, d) for _ in range(3)], [new(d, r) for _ in range(3)], Tensor.double
    counter = torch.zeros(1, dtype=torch.int32)
    way = (True, counter, "chained", target)
    outputs = [("z_ptr", nan(3 * r)), ("y_ptr", nan(3 * d))]
    (_, z), (_, y) = outputs
    run(encode_launches(x, a, norm, EPS, z, b, None, y, *way), arch, outputs)
    doubles = [[exact(w) for w in weights] for weights in (a, b)]
    truth = torch.cat(reference.encode(exact(x), *doubles, None, exact(norm), EPS), -1)
    compare(y, truth, torch.cat(reference.encode(x, a, b, None, norm, EPS), -1))

    gate_up, down = [new(d_ff, r), new(d_ff, r)], [new(r, d_ff), new(d, r)]
    outputs = [("z_ptr", nan(2 * r)), ("p_ptr", nan(d_ff)), ("z_down_ptr", nan(r)),
               ("y_ptr", nan(d))]  # fmt: skip
    (_, z), (_, p), (_, z_down), (_, y) = outputs
    run(
        mlp_launches(x, a[:2], norm, EPS, z, gate_up, p, down[0], z_down, down[1], x, y,
                     True, *way),
        arch, outputs,
    )  # fmt: skip
    doubles = [[exact(w) for w in weights] for weights in (a[:2], gate_up, down)]
    options = (EPS, True, True)
    truth = reference.mlp(exact(x), *doubles, exact(x), exact(norm), *options)
    compare(y, truth, reference.mlp(x, a[:2], gate_up, down, x, norm, *options))
