"""`cola_kernels` against its reference, and where it runs.

Most tests run a process of their own: TRITON_INTERPRET is read when Triton is first imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cola_kernels import unavailable

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def python(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = [str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # or cuBLAS would not be deterministic
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("interpret", [True, pytest.param(False, marks=pytest.mark.gpu)])
def test_against_the_reference(interpret: bool) -> None:
    """Interpreted on a CPU; on a GPU as they are, in bf16 too."""
    cases = sorted(map(str, Path(__file__).parent.glob("*_cases.py")))
    ran = python("-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", *cases,
                 interpret=interpret)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.gpu
def test_benchmark_and_tuner_on_a_gpu(tmp_path: Path) -> None:
    for command in (
        ["benchmarks", "kernels", "--model", "1b", "--op", "gated", "--rounds", "2"],
        ["benchmarks", "decode_kernels", "--model", "350m", "--rows", "1", "--rounds", "2"],
        ["cola_kernels.tools.tune", "--kernel", "up_add", "--row", "wide", "--rounds", "1"],
    ):
        ran = python("-m", *command, interpret=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_runs_on_a_cpu_uninterpreted() -> None:
    """`triton` where it cannot run is an error, never a silent fall-back."""
    code = """
import sys, torch
from cola_kernels import UnsupportedError, composed, select
assert select("torch", "cpu") is composed and "cola_kernels.fused" not in sys.modules
try:
    select("triton", "cpu")
except UnsupportedError as error:
    assert "use kernels=torch" in str(error)
else:
    raise AssertionError
from cola_kernels import fused
try:
    fused.up(torch.randn(2, 3), [torch.randn(2, 3)], torch.randn(2, 2))
except UnsupportedError as error:
    assert str(error).startswith("cola_kernels.up_add: Triton runs on CPUs only"), error
else:
    raise AssertionError
"""
    ran = python("-c", code, interpret=False)
    assert ran.returncode == 0, ran.stderr


def test_amd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls AMD's GPUs cuda too."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert unavailable("cuda") == "the kernels are for NVIDIA GPUs, not for AMD's"
