"""A rank that hangs: named, with the collective in which the others wait, and started again."""

import os
import re
import signal

import pytest
from helpers import (
    WORKERS,
    exit_code_of,
    finish,
    launch,
    losses,
    ranks_of,
    read_json,
    run_python,
    wait_for_step,
    wait_until,
)


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_run_goes_on(tiny, tmp_path):
    """SIGSTOP to rank 1: rank 0 speaks, ends with 75, and torchrun starts both again."""
    # a step takes milliseconds, but the plot at the end seconds where the machine is busy
    common = [*tiny, "train.steps=60", "train.hang_seconds=12"]
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
    assert exit_code_of([*common, f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    # of one process: sums in another order, through Adam (to the bit: test_chaos.py)
    assert losses(run_dir) == pytest.approx(losses(tmp_path / "undisturbed"), rel=2e-5)


def test_the_rank_outside_the_collective_is_named(tmp_path):
    done = run_python(WORKERS / "watchdog_worker.py", tmp_path, processes=2, expect=1)
    for words in (
        "rank 1 hangs; ",
        "rank 0: step 7, collective all_reduce, at distributed.py:",
        "rank 1: step 7, no collective, at watchdog_worker.py:",
    ):
        assert words in done.stderr
    assert read_json(tmp_path / "status.json")["exit_code"] == 75
