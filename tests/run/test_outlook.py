"""A run seen from outside: its metrics as they come, its state, its time left."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from helpers import exit_code_of

from cola_train.files import write_json, write_text
from cola_train.run.metrics import MetricsFollower, read_metrics
from cola_train.run.outlook import duration, outlook
from cola_train.run.tracking import Tracker


def line(step: int, **more: object) -> str:
    return json.dumps({"step": step, "tokens": step * 10, "loss": 2.0, "step_seconds": 4.0} | more)


def test_a_follower_reads_what_was_added_and_begins_anew_with_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.read() == (False, [])
    whole, half = line(1) + "\n", line(2)
    path.write_text(whole + half[:9])
    assert [each["step"] for each in follower.read()[1]] == [1]
    with path.open("a") as file:
        file.write(half[9:] + "\n{damaged\n" + line(3) + "\n")
    assert [each["step"] for each in follower.read()[1]] == [2, 3]
    assert follower.read() == (False, [])
    write_text(path, whole)  # as a run does that goes back
    with path.open("a") as file:
        file.write("".join(line(2, loss=loss) + "\n" for loss in (3.0, 4.0, 5.0, 6.0)))
    anew, lines = follower.read()
    assert anew and lines == read_metrics(path)
    path.unlink()
    assert follower.read() == (True, []) and follower.read() == (False, [])


def folder(path: Path, state: str = "running", step: int = 0, **more: object) -> Path:
    path.mkdir()
    claim = {"launch": 1, "attempt": 3, "host": os.uname().nodename, "pid": os.getpid()} | more
    write_json(path / "attempt.json", claim)
    code = None if state == "running" else 0
    write_json(path / "status.json", {"state": state, "step": step, "exit_code": code} | claim)
    (path / "config.yaml").write_text("train: {steps: 100, stop_after: 60, hang_seconds: 300}\n")
    (path / "metrics.jsonl").write_text(line(10) + "\n")
    return path


def test_states(tmp_path):
    lines = [json.loads(line(step)) for step in range(1, 11)]
    now, later = time.time(), time.time() + 700.0

    here = outlook(folder(tmp_path / "here"), lines, now)
    assert (here.state, here.step, here.last_step, here.starts) == ("running", 10, 60, 3)
    assert here.seconds_left == pytest.approx(50 * 4.0)
    hung = outlook(tmp_path / "here", lines, later)
    assert hung.state == "hung" and "12 min" in hung.why and hung.seconds_left is None
    assert outlook(tmp_path / "here", lines, now + 590.0).state == "running"
    slow = [{**each, "step_seconds": 40.0} for each in lines]
    assert outlook(tmp_path / "here", slow, later).state == "running"

    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # its number is still taken
    gone = outlook(folder(tmp_path / "gone", pid=ended.pid), lines, now)
    assert gone.state == "lost"
    ended.wait()
    gone = outlook(tmp_path / "gone", lines, now)
    assert gone.state == "lost" and gone.seconds_left is None
    os.utime(tmp_path / "here" / "attempt.json", (0, 0))  # our number was another's then
    assert outlook(tmp_path / "here", lines, now).state == "lost"

    folder(tmp_path / "far", host="elsewhere")
    assert outlook(tmp_path / "far", lines, now).state == "running"
    assert outlook(tmp_path / "far", lines, later).state == "lost"

    done = outlook(folder(tmp_path / "done", "done", 60), [*lines, json.loads(line(60))], later)
    assert (done.state, done.step, done.seconds_left) == ("done", 60, None)
    assert outlook(tmp_path / "nothing", []).state == "unknown"


def test_a_long_preparation_is_no_hang(tmp_path):
    folder(tmp_path / "run")
    os.utime(tmp_path / "run" / "metrics.jsonl", (0, 0))  # an earlier start's
    (tmp_path / "run" / "metrics.jsonl").unlink()
    seen = outlook(tmp_path / "run", [], time.time() + 7200.0)
    assert seen.state == "running" and "no step yet" in seen.why


def test_a_real_run_while_it_trains_and_when_it_is_done(tiny, tmp_path, monkeypatch):
    seen, advance = [], Tracker.advance

    def look(self: Tracker, step: int) -> None:
        seen.append(outlook(tmp_path, read_metrics(tmp_path / "metrics.jsonl")))
        advance(self, step)

    monkeypatch.setattr(Tracker, "advance", look)
    assert exit_code_of([*tiny, "train.steps=4", f"run_dir={tmp_path}"]) == 0
    assert {each.state for each in seen} == {"running"} and seen[0].last_step == 4
    assert [each.step for each in seen] == [1, 2, 3, 4]
    assert (seen[0].seconds_left or 0) > 0 and seen[3].seconds_left == 0
    end = outlook(tmp_path, read_metrics(tmp_path / "metrics.jsonl"))
    assert (end.state, end.step, end.starts) == ("done", 4, 1)


def test_durations():
    said = [duration(seconds) for seconds in (4.4, 59 * 60, 12000.0, 190800.0)]
    assert said == ["4 s", "59 min", "3 h 20 min", "2 d 5 h"]
