"""The benchmarks at tiny sizes: figures that agree with each other, and a bigram done by hand."""

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import run_python

from benchmarks import recipe
from benchmarks.__main__ import main
from benchmarks.bare_config import MODELS, read_model
from benchmarks.bigram import Bigram
from cola_train import costs
from cola_train.config.schema import Config
from cola_train.errors import EXIT_USER_ERROR, UserError

SHAPE = ["model.n_layers=1", "model.d_model=64", "model.d_ff=96", "model.n_heads=2",
         "model.vocab_size=300", "data.vocab_size=300", "train.sequence_length=32"]  # fmt: skip
OPTIONS = ["model=small", *SHAPE, "--batch", "2", "--repeats", "2"]


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of one benchmark."""
    path = tmp_path / "figures.json"
    assert main([*arguments, "--json", str(path)]) == 0
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def paired_ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float:
    pairs = zip(slow["step_seconds"], fast["step_seconds"], strict=True)
    return median(a / b for a, b in pairs)


def test_train_step(tmp_path: Path, config_of: Callable[..., Config]) -> None:
    figures = run(tmp_path, "train_step", *OPTIONS, "train.precision=fp32")
    full, cola = figures["methods"]["full"], figures["methods"]["cola"]
    assert figures["cola_over_full"] == pytest.approx(paired_ratio(full, cola))
    assert figures["flop_ratio"] == full["flops_per_token"] / cola["flops_per_token"] > 1
    assert figures["fraction_of_flop_ratio"] == pytest.approx(
        figures["cola_over_full"] / figures["flop_ratio"]
    )
    assert cola["parameters"] == costs.parameters(config_of("method=cola", *SHAPE))
    for method in (full, cola):
        assert len(method["step_seconds"]) == 2
        assert method["tokens_per_second"] == pytest.approx(2 * 32 / method["step_seconds_median"])
        assert method["flops_per_second"] == pytest.approx(
            method["tokens_per_second"] * method["flops_per_token"]
        )
        assert method["peak_memory_bytes"] > 4 * 4 * method["parameters"]
    assert figures["command"][:4] == ["python", "-m", "benchmarks", "train_step"]


def test_methods(tmp_path: Path, config_of: Callable[..., Config]) -> None:
    """Two of them side by side; the plan within a tenth of what is measured."""
    methods = ["--methods", "full", "cola"]
    figures = run(tmp_path, "methods", *OPTIONS, "train.precision=fp32", *methods)
    full, cola = figures["methods"]["full"], figures["methods"]["cola"]
    assert cola["time_ratio"] == pytest.approx(paired_ratio(cola, full))
    assert cola["parameters"] == costs.parameters(config_of("method=cola", *SHAPE))
    for of in (full, cola):
        assert of["trained_parameters"] == of["parameters"]
        assert of["optimizer_bytes"] >= 2 * 4 * of["parameters"]
        assert of["planned_bytes"] == pytest.approx(of["measured_bytes"], rel=0.1)


def test_inference(tmp_path: Path, config_of: Callable[..., Config]) -> None:
    """Both libraries and methods; what a step reads, by hand; what is too large is left out."""
    small = ["--batch", "2", "9999999", "--contexts", "8", "--new", "2", "--repeats", "1"]
    shape = [text for text in SHAPE if not text.startswith("train.")]
    figures = run(tmp_path, "inference", "model=small", *shape, "train.precision=fp32", *small)
    assert figures["left_out"] == ["9999999 x 8"]
    (case,), (ratios,) = figures["cases"].values(), figures["ratios"].values()
    (ours,), (theirs,) = (case[f"cola_train {m}"]["decode"]["seconds"] for m in ("cola", "full"))
    assert len(case) == 4 and ratios["cola over full"] == theirs / ours
    for method in ("full", "cola"):
        read = costs.parameters(config_of(f"method={method}", *SHAPE)) - 298 * 64
        read += 2 * 9 * 2 * 64  # sequences, positions at the middle, keys and values
        for library in ("cola_train", "transformers"):
            assert case[f"{library} {method}"]["read_bytes"] == 4 * read


def test_fp8(tmp_path: Path) -> None:
    """Two steps of each precision, emulated here: seed by seed, and not the same."""
    arguments = ["model=small", *SHAPE, "method.rank=16", "train.steps=2", "train.batch_size=2"]
    figures = run(
        tmp_path, "fp8", *arguments, "evaluation.tokens=512", "--methods", "cola", "--seeds", "2"
    )
    (of,) = figures["validation_losses"].values()
    bf16, same_weights, fp8, difference = of.values()
    assert difference == [b - a for a, b in zip(bf16, fp8, strict=True)]
    assert len({*bf16, *same_weights, *fp8}) == 6
    for seed in range(2):
        assert same_weights[seed] == pytest.approx(bf16[seed], abs=0.01)
        assert fp8[seed] == pytest.approx(bf16[seed], abs=0.05)


@pytest.mark.slow
def test_recompute_where_little_is_installed(tmp_path: Path) -> None:
    """With torch, Triton and numpy alone: every policy, alternated, beside its formula."""
    path = tmp_path / "figures.json"
    blocked = ["hydra", "omegaconf", "pyarrow", "tokenizers", "wandb", "safetensors",
               "yaml", "tqdm", "matplotlib", "transformers", "deepspeed"]  # fmt: skip
    arguments = ["recompute", "--model", "small", "--layers", "1", "--batch", "2", "--sequence",
                 "32", "--repeats", "2", "--precision", "fp32", "--json", str(path),
                 "--only", "cola", "cola, light", "cola, cola_m", "full rank"]  # fmt: skip
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); "
        f"from benchmarks.__main__ import main; sys.exit(main({arguments}))"
    )
    run_python("-c", code)
    figures = json.loads(path.read_text())
    cola = figures["contenders"]["cola"]
    assert len(figures["contenders"]) == 4
    for name, of in figures["contenders"].items():
        assert of["faster_than_cola"] == pytest.approx(paired_ratio(cola, of))
        assert of["peak_memory_bytes"] > 2**27, name  # bytes: torch alone takes more
    kept = {name: of["blocks_keep_bytes"] for name, of in figures["contenders"].items()}
    assert kept["cola, cola_m"] < kept["cola, light"] < kept["cola"]
    assert kept["cola, cola_m"] == 2 * 32 * 4 * (2 * 256 + 7 * 64)


@pytest.mark.slow
def test_peers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    figures = run(tmp_path, "peers", *OPTIONS, "train.precision=bf16")
    section = figures["precisions"]["bf16"]
    ours, *peers = section["steps"]
    assert len(peers) == 6  # bf16 and autocast, each in three forms
    assert set(section["ours_over_peer"]) == set(peers)
    for peer, ratio in section["ours_over_peer"].items():
        assert ratio == pytest.approx(paired_ratio(section["steps"][peer], section["steps"][ours]))


def test_python_time(tmp_path: Path) -> None:
    """Two sides take turns, here the same; Triton's kernels are dispatched and launch nothing."""
    pytest.importorskip("triton")
    root = str(Path(__file__).parents[2])
    figures = run(tmp_path, "python_time", "--against", root, "--methods", "cola", "--kernels",
                  "triton", "--modes", "eager", "--layers", "1", "--repeats", "2")  # fmt: skip
    (sides,) = figures["cases"].values()
    assert list(sides) == ["here", "against"]
    for of in sides.values():
        parts = [of["ms"][part] for part in ("forward", "backward", "rest")]
        assert of["ms"]["step"] == pytest.approx([sum(step) for step in zip(*parts, strict=True)])
        assert 0 < min(of["ms"]["step"]) == of["min_ms"]["step"] <= of["median_ms"]["step"]
        assert min(map(min, parts)) > 0


def test_shapes_are_read_without_yaml() -> None:
    for path in MODELS.glob("*.yaml"):
        assert read_model(path.stem) == yaml.safe_load(path.read_text())


def test_bigram_by_hand() -> None:
    # 0 1 0 1 2: pairs 01 01 10 12, in two pieces that overlap by one token
    bigram = Bigram(4)
    bigram.count(np.array([0, 1, 0], np.uint16))
    bigram.count(np.array([0, 1, 2], np.uint16))
    # different tokens before 0, 1, 2, 3: one each but 3; plus one: Q = 2/7 2/7 2/7 1/7
    by_hand = {
        (0, 1): 1.5 / 2 + 0.5 * 1 / 2 * 2 / 7,
        (0, 3): 0.5 * 1 / 2 * 1 / 7,
        (1, 2): 0.5 / 2 + 0.5 * 2 / 2 * 2 / 7,
        (3, 0): 2 / 7,  # 3 was never seen
        (2, 3): 1 / 7,  # nothing was seen after 2
    }
    for (a, b), probability in by_hand.items():
        loss = bigram.loss(np.array([a]), np.array([b]), discount=0.5)
        assert loss == pytest.approx(-math.log(probability))
    for a in range(4):
        losses = [bigram.loss(np.array([a]), np.array([b]), 0.7) for b in range(4)]
        assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainstep"], "did you mean `train_step`"),
        (["train_step", "method=cola"], "leave method= out"),
        (["train_step", "train.stepz=3"], "did you mean `train.steps`"),
        (["fp8", "seed=1"], "leave seed= out"),
        (["fp8", "model=60m", "model.d_model=520", "model.n_heads=10"], "linears have 520"),
        (["bigram", "run_dir=nowhere"], "no run in nowhere"),
        (["python_time", "--against", "nowhere"], "nowhere is no checkout of cola_train"),
        (["bigram", "--json", "no/such/folder.json"], "make it first"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


def test_tables_of_recipes_in_the_docs_are_what_their_commands_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made of the ledgers, which are committed beside the page."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    page = (root / "docs/results/README.md").read_text()
    commands = re.findall(r"`python -m benchmarks recipe\s+--folders\s+([^`]+)`", page)
    assert commands
    for folders in commands:
        options = argparse.Namespace(folders=[Path(name) for name in folders.split()], against=None)
        assert recipe.run(options).text in page


def test_recipes_are_set_against_any_arm() -> None:
    folder = Path(__file__).parents[2] / "docs/results/recipe-2m"
    found = recipe.run(argparse.Namespace(folders=[folder], against="best-full")).figures
    best, full = (found[arm][folder.name] for arm in ("best", "best-full"))
    change = 100 * (best["perplexity"] / full["perplexity"] - 1)
    assert best["percent"] == pytest.approx(change) and full["percent"] is None
    assert best["low_percent"] < change < best["high_percent"]
    with pytest.raises(UserError, match=r"against: .* has no arm nobody"):
        recipe.run(argparse.Namespace(folders=[folder], against="nobody"))
