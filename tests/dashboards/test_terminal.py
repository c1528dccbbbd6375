"""`cola-watch`: what a terminal shows of runs, once and as they go."""

import contextlib
import json
import math
import os
import pty
import re
import termios
from array import array
from pathlib import Path

import pytest

from cola_train.commands.watch import WatchOptions, run
from cola_train.dashboards import terminal
from cola_train.dashboards.watched import bars
from cola_train.errors import UserError
from cola_train.files import write_json

HEALTH = {
    "z_rank": {"q": [12, 14], "down": [4, None]},
    "dead": {"q": [0.0, 0.03], "down": [0.5, 0.25]},
    "max_logit": [12.0, 31.0],
}


def say(folder: Path, state: str, steps: range, **more: object) -> None:
    """Let the run in `folder` be in `state`, with training lines for `steps`."""
    folder.mkdir(exist_ok=True)
    claim = {"launch": 1, "attempt": 2, "host": os.uname().nodename, "pid": os.getpid()} | more
    write_json(folder / "attempt.json", claim)
    code = None if state == "running" else 0
    write_json(folder / "status.json", {"state": state, "exit_code": code, "message": ""} | claim)
    (folder / "config.yaml").write_text("train: {steps: 1000, hang_seconds: 300}\n")
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {
                "step": step, "tokens": 512 * step, "loss": 3 + 7 * math.exp(-step / 40),
                "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 12345.6, "mfu": 0.312,
                "step_seconds": 6.0, "peak_memory_bytes": 5.2e9, "skipped": 2,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


def shown(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(WatchOptions([str(each) for each in folders])) == 0
    return re.sub(r"[│\s]+", " ", capsys.readouterr().out)


def test_a_pipe_gets_the_essentials_once(tmp_path, capsys):
    say(tmp_path / "mine", "running", range(1, 401))
    with (tmp_path / "mine" / "metrics.jsonl").open("a") as file:
        validation = [{"step": 300, "val_loss": 3.1, "val_perplexity": 22.2}]
        validation += [{"step": 400, "val_loss": 3.5, "val_perplexity": 33.1}]
        told = ["warning: block 0 down: \x1b[31mcollapsed"]
        lines = [*validation, {"step": 400, "tokens": 9, "health": HEALTH, "warnings": told}]
        file.write("".join(json.dumps(each) + "\n" for each in lines))
    said = shown([tmp_path / "mine"], capsys)
    for words in (
        "mine running", "400 of 1,000 (40%), 1 h 0 min left (", "start 2", "loss 3.0003, lr 0.001",
        "grad norm 0.5, 2 steps skipped", "12,346 tokens/s, MFU 31.2%, 5.20 GB",
        "3.5000, perplexity 33.10, at step 400, best 3.1000",
        "z rank least 4 (block 0 down), dead at most 50.0% (block 0 down), max logit at most 31",
        r"step 400: block 0 down: \x1b[31mcollapsed", "█",
    ):  # fmt: skip
        assert words in said, words
    assert "\x1b" not in said


def test_several_runs_each_with_its_state(tmp_path, capsys):
    say(tmp_path / "gone", "running", range(1, 5), pid=2**22 + 1)
    say(tmp_path / "finished", "done", range(1, 1001))
    (tmp_path / "plots").mkdir()
    said = shown([tmp_path], capsys)
    assert "gone lost" in said and "without a word" in said and "finished done" in said
    with pytest.raises(UserError, match="plots: no run, nor a folder of runs"):
        run(WatchOptions([str(tmp_path / "plots")]))


def test_a_terminal_shows_what_is_new_until_all_is_done(tmp_path, monkeypatch):
    say(tmp_path / "mine", "running", range(1, 11))
    looks = iter([("running", range(11, 21)), ("done", range(21, 31))])
    monkeypatch.setattr(terminal.time, "sleep", lambda _: say(tmp_path / "mine", *next(looks)))
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 90))
    with os.fdopen(slave, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setenv("TERM", "xterm")
        assert run(WatchOptions([str(tmp_path)], refresh=9.0)) == 0
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(master, 65536):
            written += part
    os.close(master)
    steps = [int(step) for step in re.findall(r"(\d+) of 1,000", written.decode())]
    assert sorted(set(steps)) == [10, 20, 30] and next(looks, None) is None


def test_bars_fall_with_the_loss_and_a_high_beginning_is_cut_off():
    losses = array("d", [100.0] * 10 + [8.0] * 30 + [4.0] * 30 + [2.0] * 30)
    assert bars(losses, 10, 1, "01234") == ["4444333111"]
    assert bars(losses, 10, 2, "01234") == ["4444111000", "4444444111"]
    assert bars(array("d"), 10, 2, "01234") == [] and bars(array("d", [3.0]), 9, 1, "012") == ["1"]
