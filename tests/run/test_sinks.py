"""Services that show a run's figures: their names, TensorBoard's files."""

import math
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers import exit_code_of, losses

from cola_train.config import checks
from cola_train.run.owner import Owner
from cola_train.run.sinks.base import Guarded
from cola_train.run.sinks.figures import figures_of
from cola_train.run.tracking import Tracker


def test_figures_have_grouped_names_and_those_by_layer_a_spread():
    line = {
        "step": 5, "tokens": 10, "loss": 2.0, "val_loss/wiki": 3.0, "mfu": None,
        "warnings": ["low"],
        "health": {
            "z_rank": {"q": [12, 14, 40], "o": [None, None, None]},
            "residual_rms": [0.5, math.inf, None, 1.5],
        },
    }  # fmt: skip
    assert figures_of(line) == {
        "train/loss": 2.0, "validation/loss/wiki": 3.0, "perf/mfu": None,
        "health/z_rank/q/min": 12, "health/z_rank/q/median": 14, "health/z_rank/q/max": 40,
        "health/residual_rms/min": 0.5, "health/residual_rms/median": 1.0,
        "health/residual_rms/max": 1.5,
    }  # fmt: skip


def test_tensorboard_shows_each_step_once_after_a_resume_and_a_roll_back(tiny, tmp_path, config_of):
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_of(*tiny, "tracking=tensorboard", f"run_dir={tmp_path}")
    owner = Owner(tmp_path)

    def train(tracker: Tracker, steps: range, loss: float) -> None:
        for step in steps:
            tracker.training(
                dict.fromkeys(("lr", "grad_norm", "tokens_per_second", "peak_memory_bytes"), 1.0)
                | {"step": step, "tokens": 10 * step, "loss": loss, "mfu": None}
            )

    started = Tracker(config, 0, {}, owner)
    train(started, range(1, 6), 9.0)
    started.close()
    resumed = Tracker(config, 3, {}, owner)
    train(resumed, range(4, 8), 8.0)
    resumed.roll_back(5)
    train(resumed, range(6, 9), 7.0)
    resumed.validation({"step": 8, "val_loss": 5.0, "val_perplexity": 1.0}, 80)
    resumed.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {
        tag: [(each.step, each.value) for each in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    expected = dict(enumerate([9.0] * 3 + [8.0] * 2 + [7.0] * 3, start=1))
    assert shown["train/loss"] == list(expected.items()) == list(losses(tmp_path).items())
    assert shown["train/tokens"] == [(step, 10.0 * step) for step in range(1, 9)]
    assert shown["validation/loss"] == [(8, 5.0)] and "perf/mfu" not in shown


def test_without_tensorboard_its_option_ends_a_run_before_it_begins(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert exit_code_of([*tiny, "tracking=tensorboard", f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "tracking.tensorboard: " in said and "pip install 'cola_train[tensorboard]'" in said
    assert not (tmp_path / "run").exists()


def test_a_sink_that_fails_is_said_once_and_left_alone(capsys):
    calls = []

    def fail(sink: Any) -> None:
        calls.append(sink)
        raise OSError("no space")

    guarded = Guarded("Service", MagicMock)
    guarded.tell(fail)
    guarded.tell(fail)
    assert len(calls) == 1 and capsys.readouterr().err.count("Service failed") == 1
