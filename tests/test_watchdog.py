"""A rank that hangs: named, with the collective in which the others wait, and started again."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from runs import REPOSITORY, launch, losses, ranks_of, run_to_end
from slurm_cluster import wait_for


def test_a_stopped_rank_is_named_and_the_run_goes_on(tiny, tmp_path):
    """SIGSTOP to rank 1: rank 0 speaks, ends with 75, and torchrun starts both again."""
    common = [*tiny, "train.steps=120", "train.hang_seconds=4"]
    run_dir = tmp_path / "run"
    process = launch([*common, f"run_dir={run_dir}"], 2, restarts=1)
    metrics, status = run_dir / "metrics.jsonl", run_dir / "status.json"
    wait_for(lambda: metrics.exists() and '"step": 10,' in metrics.read_text(), 60, "step 10")
    stopped = ranks_of(process.pid)[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_for(lambda: json.loads(status.read_text())["state"] == "hung", 60, "the watchdog")
    said = json.loads(status.read_text())
    os.kill(stopped, signal.SIGKILL)  # as torchrun does after 30 s, which are not worth waiting
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert said["exit_code"] == 75 and said["step"] >= 10
    assert said["message"].startswith("rank 1 hangs; rank 1: no answer")
    assert re.search(rf"rank 0: step {said['step'] + 1},.* collective \w+, at ", said["message"])
    assert said["message"] in output
    assert "Thread" in (run_dir / "logs/hang-00001/rank-00000.stacks.txt").read_text()
    run_to_end([*common, f"run_dir={tmp_path / 'undisturbed'}"], 2)
    assert losses(run_dir) == losses(tmp_path / "undisturbed")


def test_the_rank_outside_the_collective_is_named(tmp_path):
    worker = Path(__file__).with_name("watchdog_worker.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, worker, tmp_path],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    for words in (
        "rank 1 hangs; ",
        "rank 0: step 7, collective all_reduce, at distributed.py:",
        "rank 1: step 7, no collective, at watchdog_worker.py:",
    ):
        assert words in done.stderr
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == 75
