"""Services that show a run's figures: their names, TensorBoard's files."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers import exit_code_of, losses

from cola_train.config import checks
from cola_train.errors import TrainingError
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


def scalars(run: Path, name: str) -> dict[int, float]:
    """Step -> value, as TensorBoard shows them."""
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = events.Scalars(name)
    assert len({each.step for each in shown}) == len(shown)
    return {each.step: each.value for each in shown}


def test_tensorboard_shows_each_step_once_after_a_resume(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    run = [*tiny, "tracking=tensorboard", "checkpoint.every=2", f"run_dir={tmp_path}"]

    def stop(self: Tracker, step: int) -> None:
        if step == 3:
            raise TrainingError("a step after the checkpoint")

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", stop)
        assert exit_code_of([*run, "train.steps=4"]) == 1
    assert exit_code_of([*run, "train.steps=4"]) == 0
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert scalars(tmp_path, "train/loss") == pytest.approx(losses(tmp_path))
    assert list(scalars(tmp_path, "validation/loss")) == [4]
    assert scalars(tmp_path, "train/tokens")[4] == 4 * 256


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
