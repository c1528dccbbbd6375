"""`cola_kernels` without a GPU: interpreted against the reference, and compiled ahead of time.

Each test runs a process of its own: TRITON_INTERPRET is read when Triton is first imported, and
must be set for the one and unset for the other.
"""

import json
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
    cases = str(Path(__file__).with_name("interpreter_cases.py"))
    ran = python("-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", cases,
                 interpret=interpret)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("architecture", ("sm_80", "sm_90"))
def test_compiled_ahead_of_time(architecture: str, tmp_path: Path) -> None:
    """No spills, shared memory within the chip's, wgmma in sm_90's GEMMs, the whole table."""
    file = tmp_path / "report.json"
    ran = python("-m", "cola_kernels.tools.compile_report", "--arch", architecture,
                 "--json", str(file), interpret=False)  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {
        "gemm_kernel", "gated_up_kernel", "gated_up_backward_kernel"
    }  # fmt: skip
    if architecture == "sm_90":
        assert all(row["wgmma"] for row in rows if row["dtype"] == "bf16")


def test_a_spill_fails_the_report() -> None:
    """The check can fail: a tile too large for its warps."""
    code = """
from cola_kernels import tiles
from cola_kernels.tools import compile_report
tiles.TABLE["gemm"]["sm_90"]["narrow"] = tiles.Config(128, 256, 64, 4, 3)
compile_report.ALL_SHAPES = {"60m": compile_report.ALL_SHAPES["60m"]}
import sys, torch
launches = compile_report.launches
compile_report.launches = lambda *a: [x for x in launches(*a) if x[0] == "up_backward, silu"][:1]
sys.argv[1:] = ["--arch", "sm_90"]
sys.exit(compile_report.main())
"""
    ran = python("-c", code, interpret=False)
    assert ran.returncode == 1 and "spills" in ran.stderr, ran.stdout + ran.stderr


def test_tuner_prints_a_row_and_times_nothing_that_spills() -> None:
    """All but the GPU's clock, for which larger tiles are faster."""
    code = """
import sys, torch
from cola_kernels import tiles
from cola_kernels.tools import tune
small, large, spilling = (
    tiles.Config(128, 64, 64, 8, 3), tiles.Config(128, 128, 64, 8, 3),
    tiles.Config(128, 128, 64, 4, 3),
)
tune.DEVICE = "meta"
tune.candidates = lambda row, arch: iter([small, large, spilling])
tune.unavailable = lambda device: None
tune.architecture = lambda op, device: "sm_90"
torch.cuda.get_device_name = lambda: "no GPU"
launched = []
def clock(subjects, rounds):
    (name, subject), = subjects.items()
    config = subject().__self__.config
    launched.append(config)
    return {name: [1 / (config.block_m * config.block_n)] * rounds}
tune.gpu_seconds = clock
tiles.TABLE["gated_up"]["sm_90"]["wide"] = small
sys.argv[1:] = ["--kernel", "gated_up", "--model", "1b"]
code = tune.main()
assert set(launched) == {small, large}, launched
assert tiles.TABLE["gated_up"]["sm_90"]["wide"] is small
sys.exit(code)
"""
    ran = python("-c", code, interpret=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"wide": Config(128, 128, 64, 8, 3),' in ran.stdout
    assert "spills" in ran.stderr


@pytest.mark.gpu
def test_benchmark_and_tuner_on_a_gpu(tmp_path: Path) -> None:
    for command in (
        ["benchmarks", "kernels", "--model", "1b", "--op", "gated", "--rounds", "2"],
        ["cola_kernels.tools.tune", "--kernel", "gemm", "--row", "narrow", "--rounds", "1"],
    ):
        ran = python("-m", *command, interpret=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_runs_on_a_cpu_uninterpreted() -> None:
    """`triton` where it cannot run is an error, never a silent fall-back."""
    code = """
import sys, torch
from cola_kernels import UnsupportedError, composed, select
assert select("auto", "cpu") is composed and "cola_kernels.fused" not in sys.modules
try:
    select("triton", "cpu")
except UnsupportedError as error:
    assert "use kernels=auto or kernels=torch" in str(error)
else:
    raise AssertionError
from cola_kernels import fused
try:
    fused.down(torch.randn(2, 3), [torch.randn(2, 3)])
except UnsupportedError as error:
    assert str(error).startswith("cola_kernels.down: Triton runs on CPUs only"), error
else:
    raise AssertionError
"""
    ran = python("-c", code, interpret=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuner_says_what_it_needs() -> None:
    ran = python("-m", "cola_kernels.tools.tune", "--kernel", "gemm", interpret=False)
    assert ran.returncode == 2 and "needs an NVIDIA GPU" in ran.stderr, ran.stderr


def test_amd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls AMD's GPUs cuda too."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert unavailable("cuda") == "the kernels are for NVIDIA GPUs, not for AMD's"
