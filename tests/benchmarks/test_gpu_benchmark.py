"""`python -m benchmarks gpu` without a GPU: every part at tiny shapes, and the verdict."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.gpu import fit, graphs, verdict
from benchmarks.gpu.parts import PARTS, Outcome
from benchmarks.gpu.policies import modelled_step
from benchmarks.gpu.sizes import FULL, TINY
from cola_train.errors import EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER_ERROR
from cola_train.gpus import GPUS
from cola_train.planning.constants import StepConstants
from cola_train.planning.launch_time import Chip

pytest.importorskip("triton")
NOT_THERE = ["hydra", "omegaconf", "yaml", "pyarrow", "tokenizers", "safetensors", "wandb", "tqdm",
             "huggingface_hub", "transformers", "deepspeed", "matplotlib", "pytest"]  # fmt: skip


def test_dry_run_where_little_is_installed(tmp_path: Path) -> None:
    """Every part, in processes that find torch, Triton and numpy alone; none of its figures is
    called a GPU's, and no constants are left for the planner to take."""
    block = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE}))"
    (tmp_path / "sitecustomize.py").write_text(block)
    file = tmp_path / "figures.json"
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY / "kernels")])
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--dry-run", "--minutes", "60",
         "--json", str(file)],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == EXIT_DONE, ran.stdout + ran.stderr
    figures = json.loads(file.read_text())
    assert figures["dry_run"] and list(figures["parts"]) == list(PARTS)
    for name, part in figures["parts"].items():
        assert part["end"] == "done" and part["good"], (name, part)
    page = file.with_suffix(".md").read_text()
    assert page.startswith("# Dry run on ") and "anything of a GPU" in page
    assert page.count("(dry run)") == len(PARTS)
    assert "| held |" not in page and "did not hold" not in page
    assert "bytes, as tokenizers is not installed" in page
    assert not list(tmp_path.glob("*constants*"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] == ".") == []
    steps = figures["parts"]["steps"]["figures"]
    assert len(steps) == 2 * len(TINY.micro_batches)
    assert all(len(of) == 6 for of in steps.values())
    policies = figures["parts"]["policies"]["figures"]
    as_graphs = figures["parts"]["graphs"]["figures"]
    for of in (*steps.values(), *policies.values(), *as_graphs.values()):
        assert all("loss" in f and "step_seconds" in f for f in of.values()), of


def test_a_part_that_is_cut_or_fails_leaves_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["gpu", "--dry-run", "--json", str(file), "--parts", "training", "--minutes"]
    assert main([*arguments, "0.001"]) == EXIT_DONE  # at most a second
    part = json.loads(file.read_text())["parts"]["training"]
    assert part["end"] == "cut" and part["seconds"] < 10
    assert "Cut at its limit of 1 s" in file.with_suffix(".md").read_text()


def outcomes(monkeypatch: pytest.MonkeyPatch, **ends: Outcome) -> None:
    """The parts end so."""
    monkeypatch.setattr(gpu, "run_part", lambda name, *others: ends[name])


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        (Outcome("done", 1, 2, figures={"a": {"good": True}}), EXIT_DONE, "1 of 1 cases"),
        (Outcome("done", 1, 2, False, figures={"a": {"good": False}}), EXIT_FAULT, "**wrong**: a"),
        (Outcome("failed", 1, 2, False, "Boom: no"), EXIT_FAULT, "Boom: no"),
    ],
)
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: Outcome, code: int, says: str
) -> None:
    """That of the correctness; a part that fails stops none after it."""
    outcomes(monkeypatch, correctness=end, ops=Outcome("failed", 1, 2, False, "Crash: op"))
    file = tmp_path / "figures.json"
    assert main(["gpu", "--dry-run", "--json", str(file), "--parts", "correctness", "ops"]) == code
    page = file.with_suffix(".md").read_text()
    assert says in page and "Crash: op" in page


def test_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No further part runs, and what was found is written."""
    ends = {"correctness": Outcome("interrupted", 1, 2, figures={"a": {"good": True}})}
    outcomes(monkeypatch, **ends)
    file = tmp_path / "figures.json"
    assert main(["gpu", "--dry-run", "--json", str(file)]) == EXIT_INTERRUPTED
    assert list(json.loads(file.read_text())["parts"]) == ["correctness"]
    assert "Not run: " in file.with_suffix(".md").read_text()


def test_mistakes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "model=60m", "--minutes", "0"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    for problem in ("sees no CUDA GPU; --dry-run", "takes no config options", "--minutes: must be"):
        assert problem in said


def step(speed: float, loss: float = 10.0) -> dict[str, Any]:
    return {"tokens_per_second": speed, "loss": loss}


def test_verdict() -> None:
    """Each claim from figures made up for it; what was not measured is not tried."""
    steps = {
        "16 x 256": {
            "full, compiled": step(100), "cola, torch, compiled": step(150),
            "cola, triton, compiled": step(180), "cola, triton, eager": {"failed": "no memory"},
        },
        "16 x 256, unpadded": {"full, compiled": step(110), "cola, torch, compiled": step(120)},
        "64 x 256": {"cola, triton, compiled": step(190), "full, compiled": step(99)},
    }  # fmt: skip
    gib = 2**30
    policies = {
        "triton, compiled": {
            "none": step(100) | {"peak_memory_bytes": 30 * gib, "planned_bytes": 29 * gib},
            "cola_m": step(84) | {"peak_memory_bytes": 12 * gib, "planned_bytes": 10 * gib},
        }
    }
    as_graphs = {"16 x 256": {"cola, torch": step(170), "cola_m, torch": step(140)}}
    found = {
        "steps": steps, "policies": policies, "correctness": {"a": {"good": True}},
        "graphs": as_graphs,
    }  # fmt: skip
    held = {text: judge(found)[0] for text, judge in verdict.CLAIMS.items()}
    assert held == {
        "The kernels are right, in bf16 too": True,
        "They give the same bits each time": None,
        "Each fused op is 1.2 times torch.compile and reaches 70 % of its floor": None,
        "cola over full rank at 1b is at least 1.86, each at its best": True,
        "kernels=triton is faster than kernels=torch": True,
        "kernels=triton gives the loss of kernels=torch": True,
        "train.compile=true is faster": None,
        "Stored padded, d_ff 5461 is faster than as it is": False,
        "The largest micro-batch is faster than the least": False,
        "cola_m runs at 0.85 of cola's speed or more": False,
        "light is faster than cola_m": None,
        "Peak memory is within a tenth of the planner's": False,
        "The step's time is within 15 % of the planner's": None,
        "The default run ends as on a CPU": None,
    }
    said = verdict.verdict({name: Outcome("done", 1, 2, figures=f) for name, f in found.items()},
                           dry_run=False)  # fmt: skip
    best = "- `kernels=triton train.compile=true` and a micro-batch of 64: 190 tokens/s"
    assert said[2] == best
    assert "`recompute=none` where memory allows it" in said[3] and "0.84 of its speed" in said[3]


def test_fit_finds_the_constants_behind_timings() -> None:
    """Timings that the model makes with other constants give those back."""
    gpu = GPUS["h100-80gb"]
    true = dataclasses.replace(
        StepConstants(), gemm_peak=0.7, gemm_fill_us=6.0, gemm_bandwidth=0.8, pass_bandwidth=0.6,
        launch_us=3.0, odd_rows=2.0, fused_peak=0.4, fused_fill_us=3.0,
    )  # fmt: skip
    chip = Chip(gpu, true, 2)
    single: list[dict[str, Any]] = [
        {"kind": "copy", "bytes": 2**30, "seconds": 2**30 / 0.8 / gpu.memory_bandwidth},
        {"kind": "pass", "bytes": 2**30, "seconds": 2**30 / 0.6 / gpu.memory_bandwidth},
        {"kind": "chain", "kernels": 100, "seconds": 300e-6},
    ]
    for shape in FULL.gemms:
        seconds = chip.seconds(fit.gemm(*shape))
        single.append({"kind": "gemm", "shape": shape, "seconds": seconds})
    for factor in (1, 2):
        single.append(single[3] | {"odd": factor == 2, "seconds": factor * single[3]["seconds"]})
    for shape in ((8192, 5504, 512), (16384, 11008, 1024), (4096, 5504, 2048)):
        what = {"kind": "fused", "shape": shape, "products": 2, "moved": 3}
        single.append(what | {"seconds": chip.seconds(fit.fused_gemm(what))})
    found, misfits = fit.fit_kernels(gpu, single)
    in_a_step = dataclasses.replace(true, gemm_peak=0.6)  # slower than one by one
    config = graphs.graph_config(FULL, 64, *graphs.CONTENDERS["full"])
    whole = config, modelled_step(config, gpu, in_a_step)
    assert fit.fit_kernels(gpu, single, whole)[0].gemm_peak == pytest.approx(0.6, rel=0.02)
    for field in dataclasses.fields(true):
        assert getattr(found, field.name) == pytest.approx(getattr(true, field.name), rel=0.05), (
            field.name
        )
    assert max(misfits.values()) < 0.01
