"""Steps that must not count: skipped and counted, and after k in a row the run is rolled back."""

import json
import math
from pathlib import Path

import pytest
from helpers import exit_code_of, losses

from cola_train.data.loader import BatchLoader
from cola_train.engines.base import StepResult
from cola_train.engines.fsdp.engine import FSDPEngine
from cola_train.run.state import Progress
from cola_train.train import skip_message


class Faults:
    """Multiplies the loss of some of the data's batches, counted from 0, by a factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: range, factor: float) -> None:
        self.here = False
        next_batches, loss = BatchLoader.next, FSDPEngine.loss

        def watched(loader: BatchLoader):
            self.here = loader.samples // 8 in batches
            return next_batches(loader)

        def faulty(engine, batch):
            return loss(engine, batch) * (factor if self.here else 1.0)

        monkeypatch.setattr(BatchLoader, "next", watched)
        monkeypatch.setattr(FSDPEngine, "loss", faulty)


def run(tiny: list[str], run_dir: Path, *overrides: str) -> dict[int, float]:
    assert exit_code_of([*tiny, f"run_dir={run_dir}", *overrides]) == 0
    return losses(run_dir)


def last_line(run_dir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line][-1]


def test_a_spike_is_skipped_and_counted(tiny, tmp_path, monkeypatch, capsys):
    """Ten times the loss is skipped as a loss that is not a number is: the same run after it."""
    spiking, broken = tmp_path / "spiking", tmp_path / "broken"
    with monkeypatch.context() as patch:
        Faults(patch, range(70, 71), 10.0)
        spike = run(tiny, spiking, "train.steps=80", "train.spike_deviations=6")
    assert "a spike" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        Faults(patch, range(70, 71), math.nan)
        nan = run(tiny, broken, "train.steps=80")
    assert "not finite" in capsys.readouterr().err
    assert last_line(spiking)["skipped"] == last_line(broken)["skipped"] == 1
    assert spike.pop(71) > 10 and nan.pop(71) is None
    assert spike == nan


def test_a_spike_is_one_by_its_loss():
    """An engine may skip it by gradients that it made not finite."""
    spike = StepResult(loss=9.0, grad_norm=math.nan, tokens=1, skipped=True)
    assert "a spike" in skip_message(Progress(), spike, max_loss=8.0)
    assert "not finite" in skip_message(Progress(), spike, max_loss=math.inf)


def test_k_in_a_row_roll_back_to_the_checkpoint_and_leave_out_their_data(
    tiny, tmp_path, monkeypatch
):
    """Steps 13 to 15 are not finite: back to step 10, on with batch 15 (from 0) as step 11."""
    rolled_back, expected = tmp_path / "rolled back", tmp_path / "expected"
    with monkeypatch.context() as patch:
        Faults(patch, range(12, 15), math.nan)
        actual = run(tiny, rolled_back, "train.steps=30", "train.rollback_after=3")
    assert last_line(rolled_back)["skipped"] == 3

    run(tiny, expected, "train.steps=30", "train.stop_after=10")
    load = BatchLoader.load_state_dict

    def skip_ahead(loader: BatchLoader, state) -> None:
        load(loader, {**state, "samples": 15 * 8})

    monkeypatch.setattr(BatchLoader, "load_state_dict", skip_ahead)
    assert run(tiny, expected, "train.steps=30") == actual
    assert list(actual) == list(range(1, 31))


def test_roll_back_that_does_not_help_ends_the_run(tiny, tmp_path, monkeypatch, capsys):
    Faults(monkeypatch, range(7, 1000), math.nan)
    arguments = ["train.steps=60", "train.rollback_after=2", f"run_dir={tmp_path}"]
    assert exit_code_of([*tiny, *arguments]) == 1
    assert "10 did not help" in capsys.readouterr().err
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
