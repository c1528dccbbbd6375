"""What a run says and records: lines in a log, a bar on a terminal, the loss plot, W&B offline."""

import json
import os
import pty
import re
import signal
import termios
from pathlib import Path

import pytest
from helpers import exit_code_of, finish, launch, losses, read_json, run_python
from wandb.proto import wandb_internal_pb2

from cola_train import progress
from cola_train.progress import Bar
from cola_train.run import tracking
from cola_train.run.console import printable
from cola_train.run.owner import Owner, SupersededError
from cola_train.run.tracking import Tracker

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
STEP = TIME + (
    r"step (\d+)/(\d+): loss \d+\.\d{4}, grad norm [\d.e+-]+, lr [\d.e+-]+, [\d,]+ tokens/s"
    r"(?:, MFU \d+\.\d%)?, \d+\.\d\d GB(?:, \d\d:\d\d left)?"
)
CONTROL = r"[\x00-\x09\x0b-\x1f\x7f]"


def test_a_log_has_a_line_with_the_time_for_each_logged_step(tiny, tmp_path, capsys):
    run = [*tiny, "train.steps=7", "tracking.progress=true", f"run_dir={tmp_path}"]
    assert exit_code_of([*run, "train.log_every=3"]) == 0
    said = capsys.readouterr().err
    assert re.findall(f"^{STEP}$", said, re.M) == [("3", "7"), ("6", "7"), ("7", "7")]
    assert re.search(f"^{TIME}step 7: validation loss ", said, re.M)
    assert re.search(CONTROL, said) is None


def test_without_progress_no_step_is_said(tiny, tmp_path, capsys):
    assert exit_code_of([*tiny, "train.steps=2", f"run_dir={tmp_path}"]) == 0
    said = capsys.readouterr().err
    assert "step 1/" not in said and "step 2: validation loss" in said


def test_a_log_of_work_has_a_line_now_and_then(capsys, monkeypatch):
    now = iter([0.0, 10.0, 31.0, 40.0, 41.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Bar("Tokenising", total=6, done=1) as bar:
        for done in (2, 3, 4, 6):
            bar.show(done, f"{done}M tokens")
    lines = [re.sub(TIME, "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["Tokenising 3/6: 3M tokens, 01:03 left", "Tokenising 6/6: 6M tokens"]


def test_nothing_is_glued_to_a_terminals_bar(tiny, tmp_path):
    """Neither what is said while it is there nor the error that ends the run."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, 160))
    common = [*tiny, "train.steps=3", "tracking.progress=true", f"run_dir={tmp_path}"]
    bad = ["optim.lr=1e12", "optim.warmup_steps=0", "optim.clip=null", "train.non_finite=stop"]
    process = launch([*common, *bad], errors=slave)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(master)
    finish(process, expect=1)
    # what a line shows is what came after its last return to the left
    lines = [line.rstrip("\r").split("\r")[-1] for line in shown.decode().split("\n")]
    bars = [line for line in lines if "2/3 [" in line]
    assert len(bars) == 1 and "loss nan, grad norm nan" in bars[0]
    assert any(line.startswith("step 2: loss nan") for line in lines)
    assert any(line.startswith("error: training diverged: ") for line in lines)
    assert not any(re.match(TIME, line) for line in lines)


def test_the_loss_is_drawn_as_the_run_goes(tiny, tmp_path, monkeypatch):
    plot, drawn = tmp_path / "plots" / "loss.png", []
    advance = Tracker.advance

    def stop_at_three(self: Tracker, step: int) -> None:
        drawn.append(plot.stat().st_mtime_ns if plot.exists() else None)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, step)

    monkeypatch.setattr(tracking, "PLOT_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "PLOT_SHARE", 1e9)
    monkeypatch.setattr(Tracker, "advance", stop_at_three)
    assert exit_code_of([*tiny, "train.steps=50", f"run_dir={tmp_path}"]) == 75
    assert drawn[0] is None and None not in drawn[1:] and len(set(drawn)) == len(drawn)
    assert plot.read_bytes().startswith(b"\x89PNG") and len(list(plot.parent.iterdir())) == 1


def test_a_stopped_run_has_its_plot(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "advance", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert exit_code_of([*tiny, "train.steps=50", f"run_dir={tmp_path}"]) == 75
    assert (tmp_path / "plots" / "loss.png").exists()


def test_a_plot_that_cannot_be_drawn_stops_nothing(tiny, tmp_path, capsys):
    (tmp_path / "plots").write_text("no folder")
    assert exit_code_of([*tiny, "train.steps=2", f"run_dir={tmp_path}"]) == 0
    assert f"{tmp_path}/plots: the loss was not drawn: " in capsys.readouterr().err
    assert read_json(tmp_path / "status.json")["state"] == "done"


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


def test_a_sample_commands_no_terminal():
    assert printable("caf\xe9\t\x1b[2J\n\x02b") == "caf\xe9\\t\\x1b[2J\n\\x02b"
