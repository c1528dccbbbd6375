"""`python -m benchmarks kernels` without a GPU: all of it but the clock, at tiny shapes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from statistics import median

import pytest
from cola_kernels.tools.floors import SHAPES, table

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def modules_besides(*kept: str) -> list[str]:
    """Importable modules of the packages that cola_train needs, but for those of `kept`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", text)[0].lower() for text in project["dependencies"]} - {*kept}
    return [
        module
        for module, packages in packages_distributions().items()
        if needed & {package.lower() for package in packages}
    ]


def test_runs_with_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    """From the root of a checkout, with nothing on the path but what python puts there."""
    blocked = modules_besides("torch", "triton", "numpy")
    assert {"hydra", "omegaconf", "yaml", "pyarrow", "wandb"} <= {*blocked}
    file = tmp_path / "kernels.json"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernels.benchmark_case", str(file), *blocked],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "needs an NVIDIA GPU" in ran.stderr
    figures = json.loads(file.read_text())
    assert figures["machine"]["device"] and figures["machine"]["date"] and figures["triton"]
    ops = figures["models"]["1b"]["ops"]
    assert set(ops) == {name for name in table(SHAPES["1b"]) if not name.startswith("gated_up")}
    for op in ops.values():
        assert op["correct"], op["error"]
        fused = op["seconds"]["fused"]
        for name, ratio in op["faster_than"].items():
            pairs = zip(op["seconds"][name], fused, strict=True)
            assert ratio == pytest.approx(median(a / b for a, b in pairs))
        assert op["flops_per_second"] == pytest.approx(op["flops"] / median(fused))
        assert op["of_floor"] == pytest.approx(op["floor_seconds"] / median(fused))
