"""W&B offline, for real: what is recorded, and that its failure does not matter."""

import json
from pathlib import Path

import pytest
from helpers import exit_code_of, losses, read_json, run_python
from wandb.proto import wandb_internal_pb2

from cola_train.run.owner import Owner, SupersededError
from cola_train.run.tracking import Tracker


def offline_records(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    content, position, record, parts = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # 1 whole, 2 first, 3 middle, 4 last
        if kind == 0:
            break
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            parts.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return parts


def items(entries) -> dict[str, object]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json)
            for entry in entries}  # fmt: skip


def test_offline_run_records_config_commit_and_history(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of the machine's user
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "run"
    arguments = ["train.steps=3", "tracking.wandb=auto", f"run_dir={run}"]
    assert exit_code_of([*tiny, *arguments]) == 0
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    records = offline_records(file)
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    trained = [line for line in history if "train/loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3]
    assert [line["tokens"] for line in trained] == [256, 512, 768]
    assert {line["step"]: line["train/loss"] for line in trained} == losses(run)
    assert "perf/tokens_per_second" in trained[0] and "validation/loss" in history[-1]
    config = next(
        items(r.run.config.update) for r in records if r.WhichOneof("record_type") == "run"
    )
    assert config["train"]["steps"] == 3 and config["parameters"] > 0
    assert config["git_commit"]


def test_wandb_failing_does_not_stop_training(tiny, tmp_path, monkeypatch, capsys):
    import wandb

    def fail(*_, **__):
        raise RuntimeError("no such server")

    monkeypatch.setattr(wandb, "init", fail)
    run = tmp_path / "run"
    assert exit_code_of([*tiny, "train.steps=2", "tracking.wandb=online", f"run_dir={run}"]) == 0
    assert "no such server" in capsys.readouterr().err
    assert len(losses(run)) == 2


def test_a_superseded_start_drops_no_line_of_the_owner(tiny, tmp_path, config_of):
    config = config_of(*tiny, f"run_dir={tmp_path}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    before = Owner(tmp_path)
    Owner(tmp_path)
    with pytest.raises(SupersededError):
        Tracker(config, 0, {}, before)
    assert list(losses(tmp_path)) == [1]


def test_a_launch_that_has_lost_the_folder_leaves_its_config_alone(
    tiny, tmp_path, monkeypatch, capsys
):
    (tmp_path / "attempt.json").write_text('{"launch": 3, "host": "n2", "pid": 7}')
    (tmp_path / "config.yaml").write_text("seed: 5\n")
    monkeypatch.setenv("COLA_LAUNCH", "2")
    assert exit_code_of([*tiny, "train.steps=2", f"run_dir={tmp_path}"]) == 1
    assert "belongs to a later start" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "seed: 5\n"


# W&B finishes when the watchdog has ended: at once, or, where it goes on watching, never.
FINISHES_LATE = """
import threading
from unittest.mock import MagicMock

import wandb

from cola_train.__main__ import main

watchdogs = set()

def log(*_, **__):
    watchdogs.update(thread for thread in threading.enumerate() if thread.name == "watchdog")

def finish(**_):
    (watchdog,) = watchdogs
    watchdog.join()
    print("nothing watches")

wandb.init = MagicMock()
wandb.init.return_value.log, wandb.init.return_value.finish = log, finish
main()
"""


def test_wandb_that_finishes_slowly_is_no_hang(tiny, tmp_path):
    """The watchdog would end the process, so the run has one of its own."""
    common = [*tiny, "train.steps=2", "tracking.wandb=offline", f"run_dir={tmp_path}"]
    ran = run_python("-c", FINISHES_LATE, *common, "train.hang_seconds=30")
    assert "nothing watches" in ran.stdout
    assert read_json(tmp_path / "status.json")["state"] == "done"
