"""Runs on this machine: killed, stopped, left over by a command that was killed."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fake_cluster import MadeUp, end, member, open_journal
from helpers import wait_until

from cola_train.compare import journal, running
from cola_train.compare.journal import run_folder
from cola_train.compare.running import RESTARTS, Local, Orphan

FULL, COLA = member("full"), member("cola")


def shell(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", "-c", script], start_new_session=True)


def states(folder: Path) -> dict[str, str]:
    return {name: line["state"] for name, line in open_journal(folder).lines.items()}


def why(folder: Path, name: str) -> str:
    return open_journal(folder).lines[name]["why"]


def test_a_killed_run_is_named_and_the_rest_go_on(tmp_path):
    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        if "method=full" in words:
            end(tmp_path, FULL, "running")
            return shell("kill -KILL $$")
        end(tmp_path, COLA, "failed", 1)
        return shell("exit 1")

    assert Local(tmp_path, 1, start).run(open_journal(tmp_path)) == 0
    assert set(states(tmp_path).values()) == {"failed"} and len(states(tmp_path)) == 2
    reason = why(tmp_path, FULL.name)
    assert reason.startswith("killed (SIGKILL), as a machine does")
    assert "see runs/" in reason and str(tmp_path) not in reason  # the folder may be moved
    assert why(tmp_path, COLA.name) == "it said so"


def test_of_an_earlier_start_no_word_counts(tmp_path):
    """One that dies before it claims its folder, as with a broken Python, is not started for ever
    because the start before was stopped by a signal."""
    for each in (FULL, COLA):
        end(tmp_path, each, "stopped", 75)

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        log.write_text("No module named cola_train\n")
        return shell("exit 1")

    assert Local(tmp_path, 2, start).run(open_journal(tmp_path)) == 0
    assert why(tmp_path, FULL.name) == "No module named cola_train"


def test_one_that_stops_again_and_again_is_left(tmp_path):
    started = []

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        each = FULL if "method=full" in words else COLA
        started.append(each.name)
        end(tmp_path, each, "stopped", 75, launch=started.count(each.name))
        return shell("exit 75")

    assert Local(tmp_path, 2, start).run(open_journal(tmp_path)) == 0
    assert started.count(FULL.name) == started.count(COLA.name) == 1 + RESTARTS
    assert "of its own accord" in why(tmp_path, FULL.name)


def test_ctrl_c_lets_runs_save_and_a_second_one_does_not(tmp_path):
    """Neither calls a run failed that was on its way, or had not even begun to listen."""
    begun, told = tmp_path / "begun", tmp_path / "told"
    before = signal.getsignal(signal.SIGINT)  # another test of this process may have left its own

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        if "method=cola" in words:
            return shell("sleep 60")  # in the midst of its imports
        return shell(f"trap 'touch {told}' TERM; touch {begun}; while :; do sleep 0.05; done")

    def interrupt() -> None:
        for path in (begun, told):
            wait_until(path.exists, path.name)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    local = Local(tmp_path, 2, start)
    assert local.run(open_journal(tmp_path)) == 75
    thread.join()
    assert states(tmp_path) == {} and not local.going
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_left_over_is_waited_for(tmp_path):
    run_dir = run_folder(tmp_path, FULL)
    end(tmp_path, FULL, "running", launch=3)
    left = subprocess.Popen([sys.executable, "-c", "input()", str(run_dir)], stdin=subprocess.PIPE)
    claim = json.loads((run_dir / "attempt.json").read_text())
    claim |= {"host": socket.gethostname(), "pid": left.pid}
    (run_dir / "attempt.json").write_text(json.dumps(claim))
    wait_until(lambda: Orphan.of(run_dir) is not None, "its program has begun")

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        assert "method=full" not in words
        end(tmp_path, COLA, "failed", 1)
        end(tmp_path, FULL, "failed", 1, launch=3)
        left.communicate(b"\n")  # it ends
        return shell("exit 1")

    assert Local(tmp_path, 2, start).run(open_journal(tmp_path)) == 0
    assert why(tmp_path, FULL.name) == "it said so"


def test_what_had_ended_when_the_command_was_killed_does_not_run_again(tmp_path):
    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        raise AssertionError(words)

    for each in (
        FULL,
        COLA,
        *(member(arm, "final", n) for arm in ("full", "cola") for n in (0, 1)),
    ):
        end(tmp_path, each)
    assert Local(tmp_path, 1, start).run(open_journal(tmp_path)) == 0
    assert len(states(tmp_path)) == 6 and set(states(tmp_path).values()) == {"done"}


def test_what_another_member_was_given_does_not_run_again(tmp_path, monkeypatch):
    """As where whole runs choose rates: the best one is the first seed too."""
    first = replace(FULL, phase="final", lr=0.002)
    known = [FULL, COLA, first]
    monkeypatch.setattr(MadeUp, "known", lambda *_: known)
    begun = []

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        begun.append(log.parent)
        end(tmp_path, known[len(begun) - 1], *(["done", 0] if len(begun) == 1 else ["failed", 1]))
        return shell("exit 0")

    assert Local(tmp_path, 1, start).run(open_journal(tmp_path)) == 0
    assert begun == [run_folder(tmp_path, each) for each in known[:2]]
    lines = open_journal(tmp_path).lines
    its_own = {"member": first.name, "phase": "final", "lr": 0.002, "words": list(first.given)}
    assert lines[first.name] == {**lines[FULL.name], **its_own}


def test_of_several_gpus_each_run_has_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    given = []
    for name, says in (("nvidia-smi", "GPU-a; echo GPU-b"), ("python", "$CUDA_VISIBLE_DEVICES")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)

    def start(words: Sequence[str], log: Path, gpu: str | None) -> subprocess.Popen[bytes]:
        given.append(gpu)
        end(tmp_path, FULL if "method=full" in words else COLA, "failed", 1)
        return shell("sleep 0.3")

    assert Local(tmp_path, 2, start, running.gpus()).run(open_journal(tmp_path)) == 0
    assert given == ["GPU-a", "GPU-b"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    log = tmp_path / "log.txt"
    running.start([], log, "GPU-b")
    wait_until(lambda: log.read_text() == "GPU-b\n", "the program says its GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert running.gpus() == ["3"]


def test_where_the_ledger_cannot_be_written_runs_save_and_end(tmp_path, monkeypatch):
    saved = tmp_path / "saved"

    def start(words: Sequence[str], log: Path, _: str | None) -> subprocess.Popen[bytes]:
        if "method=full" in words:
            end(tmp_path, FULL)
            return shell("exit 0")
        return shell(f"trap 'touch {saved}; exit 75' TERM; while :; do sleep 0.05; done")

    def full(folder: Path, line: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        Local(tmp_path, 2, start).run(open_journal(tmp_path))
    assert saved.exists()
