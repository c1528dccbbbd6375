"""`python -m benchmarks kernels` and `decode_kernels` without a GPU: all but the clock, at tiny
shapes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from statistics import median
from typing import Any

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


def ran(case: str, file: Path) -> dict[str, Any]:
    """The figures of a benchmark, from the root of a checkout, with nothing on the path but what
    python puts there."""
    blocked = modules_besides("torch", "triton", "numpy")
    assert {"hydra", "omegaconf", "yaml", "pyarrow", "wandb"} <= {*blocked}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.{case}", str(file), *blocked],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs an NVIDIA GPU" in done.stderr
    figures: dict[str, Any] = json.loads(file.read_text())
    assert figures["machine"]["device"] and figures["machine"]["date"] and figures["triton"]
    return figures


def test_runs_with_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    figures = ran("benchmark_case", tmp_path / "kernels.json")
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


def test_decode_kernels(tmp_path: Path) -> None:
    figures = ran("decode_benchmark_case", tmp_path / "decode.json")
    assert all(of["good"] for of in figures["errors_in_other_dtypes"].values())
    assert set(figures["layers"]) == {"350m, 2"}
    for of in figures["layers"].values():
        assert of["good"] and 0 < of["of_allowed"] <= 1
        for layer in ("qkv", "o", "mlp", "block"):
            median = of[layer]["seconds_median"]
            assert of[layer]["of_floor"] == of[layer]["floor_seconds"] / median["ours"]
            assert of[layer]["faster_than_torch"] == median["torch"] / median["ours"]
