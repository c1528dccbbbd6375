"""Health in runs of the trainer: no effect on what is trained, its lines, its warnings."""

import json
from functools import partial

import pytest
import torch
from helpers import exit_code_of, losses, refusal
from torch._dynamo.utils import counters

from cola_train import train as trainer
from cola_train.engines.base import build_engine

STEPS = ["train.steps=4", "checkpoint.every=0"]


def lines(run_dir):
    text = (run_dir / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "health" in line]


@pytest.mark.parametrize("method", ["cola", "sltrain", "relora", "galore"])
def test_losses_are_the_same_to_the_bit(tiny, tmp_path, method):
    common = [*tiny, *STEPS, f"method={method}", *["method.merge_every=2"] * (method == "relora")]
    for name, more in (("off", []), ("on", ["health.every=2", "health.tokens=64"])):
        assert exit_code_of([*common, *more, f"run_dir={tmp_path / name}"]) == 0
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert not lines(tmp_path / "off")
    found = lines(tmp_path / "on")
    assert [(line["step"], line["tokens"]) for line in found] == [(2, 512), (4, 1024)]
    figures = found[-1]["health"]
    of_blocks = {"grad_norm", "max_logit", "residual_rms"}
    of_factors = {"norm_a", "norm_b", "norm_ba", "condition", "update_a", "update_b"}
    of_factors |= {f"frobenius_{of}" for of in ("a", "b", "ba")}
    expected = {
        "cola": of_factors | {"z_rank", "s_rank", "dead", "saturated"},
        "relora": of_factors | {"z_rank", "dead"},
        "sltrain": of_factors,  # it computes no bottleneck
        "galore": set(),
    }
    assert figures.keys() == of_blocks | expected[method]
    for name in expected[method]:
        assert set(figures[name]) == set("q k v o gate up down".split())
        assert all(len(by_block) == 2 for by_block in figures[name].values())


def test_compiled_and_recomputed_blocks_are_looked_at_and_stay_compiled(
    tiny, tmp_path, monkeypatch
):
    """By Dynamo alone, which is what an observer could disturb: no graph is made anew."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    graphs = {}
    common = [*tiny, *STEPS, "train.compile=true", "recompute=cola_m"]
    for name, more in (("off", []), ("on", ["health.every=1"])):
        torch._dynamo.reset()
        counters.clear()
        assert exit_code_of([*common, *more, f"run_dir={tmp_path / name}"]) == 0
        graphs[name] = dict(counters["stats"])
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert graphs["on"] == graphs["off"] and graphs["on"]["unique_graphs"] > 0
    assert [line["health"]["z_rank"]["q"][1] is not None for line in lines(tmp_path / "on")]


def test_a_dead_bottleneck_warns_by_name_once(tiny, tmp_path, monkeypatch, capsys):
    def without_one(*arguments):
        engine = build_engine(*arguments)
        weights, name = engine.weights(), "layers.1.attention.qkv.k_A"
        weights.assign(name, torch.zeros_like(weights.full(name)))
        return engine

    monkeypatch.setattr(trainer, "build_engine", without_one)
    # its own learning rate: else it would come back
    frozen = "optim.groups={*layers.1.attention.qkv.k_A:{lr:1e-30}}"
    run = [*tiny, *STEPS, frozen, "health.every=1", f"run_dir={tmp_path / 'run'}"]
    assert exit_code_of(run) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "step 1: warning: bottlenecks have collapsed" in warning
    assert "(dead): layers.1.attention.qkv.k (1)." in warning
    assert "It means that" in warning and "What helps:" in warning
    first, *others = lines(tmp_path / "run")
    assert first["warnings"][0] in warning and not any("warnings" in line for line in others)
    figures = others[-1]["health"]
    assert figures["z_rank"]["k"][1] == 0


def test_a_learning_rate_far_too_high_warns_by_name(tiny, tmp_path, capsys):
    run = [*tiny, "train.steps=12", "checkpoint.every=0", "health.every=2", "optim.lr=3"]
    assert exit_code_of([*run, f"run_dir={tmp_path / 'high'}"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    runaway = [line for line in warned if "norms run away" in line]
    assert runaway and "mlp.down (" in runaway[0]
    assert exit_code_of([*run[:-1], f"run_dir={tmp_path / 'usual'}"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_options_without_effect_are_refused():
    usual = {"method": {"name": "cola"}}
    assert refusal(**usual, health={"alpha": 0.9}) == (
        "health.alpha: 0.9 has no effect without health.every; set that",
    )
    assert refusal(**usual, health={"alpha": 0.9, "every": 10}) == ()
