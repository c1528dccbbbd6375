"""A rank that hangs: named, with the collective in which the others wait, and started again."""

import os
import re
import signal

import pytest
from helpers import (
    WORKERS,
    finish,
    launch,
    losses,
    ranks_of,
    read_json,
    run_python,
    run_to_end,
    wait_for_step,
    wait_until,
)


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_goes_on(tiny, tmp_path):
    """SIGSTOP to rank 1: rank 0 speaks, ends with 75, and torchrun starts both again."""
    common = [*tiny, "train.steps=120", "train.hang_seconds=4"]
    run_dir = tmp_path / "run"
    process = launch([*common, f"run_dir={run_dir}"], 2, restarts=1)
    status = run_dir / "status.json"
    wait_for_step(run_dir, 10, process)
    stopped = ranks_of(process.pid)[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: read_json(status)["state"] == "hung", "the watchdog", process)
    said = read_json(status)
    os.kill(stopped, signal.SIGKILL)  # as torchrun does after 30 s, which are not worth waiting
    output, _ = finish(process)
    assert said["exit_code"] == 75 and said["step"] >= 10
    assert said["message"].startswith("rank 1 hangs; rank 1: no answer")
    assert re.search(rf"rank 0: step {said['step'] + 1},.* collective \w+, at ", said["message"])
    assert said["message"] in output
    assert "Thread" in (run_dir / "logs/hang-00001/rank-00000.stacks.txt").read_text()
    run_to_end([*common, f"run_dir={tmp_path / 'undisturbed'}"], 2)
    assert losses(run_dir) == losses(tmp_path / "undisturbed")


def test_the_rank_outside_the_collective_is_named(tmp_path):
    done = run_python(WORKERS / "watchdog_worker.py", tmp_path, processes=2, expect=1)
    for words in (
        "rank 1 hangs; ",
        "rank 0: step 7, collective all_reduce, at distributed.py:",
        "rank 1: step 7, no collective, at watchdog_worker.py:",
    ):
        assert words in done.stderr
    assert read_json(tmp_path / "status.json")["exit_code"] == 75
