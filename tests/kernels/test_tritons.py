"""The kernels under each Triton that torch's CUDA builds bring, and under the newest: compiled, and
executed on the CPU. The environment's own is that of the other tests; these have folders."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("COLA_TRITONS") or Path(sys.prefix) / "tritons")
VERSIONS = ("3.6.0", "3.7.1", "3.9.0")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if request.param == metadata.version("triton"):
        pytest.skip(f"Triton {request.param} is the environment's own, which other tests have")
    if not (FOLDER / request.param).is_dir():
        pytest.skip(f"Triton {request.param} is not installed: tests/install_tritons.sh <python>")
    return str(request.param)


def run(version: str, tmp_path: Path, module: str, *arguments: str) -> str:
    """What a tool prints under this version.

    Raises:
        CalledProcessError: it failed; its errors are on ours.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHONPATH": f"{FOLDER / version}{os.pathsep}{ROOT / 'kernels'}",
        "TRITON_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", f"cola_kernels.tools.{module}", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith(f"Triton {version}, "), done.stdout[:100]
    return done.stdout


@pytest.mark.parametrize(
    "arch",
    ["sm_90", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_80", "sm_86"))],
)
def test_every_row_compiles(version: str, tmp_path: Path, arch: str) -> None:
    """As the report wants it: no spills, and so on."""
    assert "| up_add_kernel |" in run(
        version, tmp_path, "compile_report", "--arch", arch, "--brief"
    )


@pytest.mark.parametrize("version", VERSIONS[:1], indirect=True)
def test_the_decode_kernels_compile(version: str, tmp_path: Path) -> None:
    """With the oldest, which has run them on a GPU."""
    assert "| gate_up_kernel |" in run(
        version, tmp_path, "decode_report", "--arch", "sm_90", "--brief"
    )


def test_kernels_are_right_and_race_free(version: str, tmp_path: Path) -> None:
    """On sm_90, where TMA loads need no proxy fence: 3.6.0 has none for `cp.async`."""
    said = run(version, tmp_path, "ptx", "--arch", "sm_90", "--shape", "ragged")
    assert said.count(": right;") == 9
