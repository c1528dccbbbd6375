"""The scripts of launch/ on a real SLURM: requeued, preempted, deserted, and no step differs."""

import functools
import os
import re
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    exit_code_of,
    losses,
    read_json,
    run_to_end,
    wait_for_step,
    wait_until,
)
from slurm_cluster import unavailable

STEPS = 4000  # of the schedule; each test ends earlier, at its `train.stop_after`

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.slow,
]


@pytest.fixture(scope="session")
def undisturbed(
    tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], dict[int, float]]:
    """(steps, processes) -> the losses of a run that nothing happens to."""

    @functools.cache
    def longest(processes: int) -> dict[int, float]:
        run_dir = tmp_path_factory.mktemp("undisturbed")
        stop = 300 if processes == 1 else 20
        command = [*tiny, f"train.steps={STEPS}", f"train.stop_after={stop}"]
        command.append(f"run_dir={run_dir}")
        if processes == 1:
            assert exit_code_of(command) == 0
        else:
            run_to_end(command, processes)
        return losses(run_dir)

    def losses_of(steps: int, processes: int) -> dict[int, float]:
        return {step: loss for step, loss in longest(processes).items() if step <= steps}

    return losses_of


def status(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "status.json")


def attempt(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "attempt.json")


def pause(process: int) -> None:
    """Until a SIGCONT, which SLURM sends along with its signals: or a run so small would end."""
    os.kill(process, signal.SIGSTOP)


def test_two_nodes(cluster, tiny, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "train.stop_after=20", f"run_dir={run_dir}"]
    job = cluster.submit(*common, "tracking.progress=true", NODES=2)
    cluster.wait(job, "COMPLETED")
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    assert losses(run_dir) == undisturbed(20, 2)
    assert status(run_dir)["state"] == "done"
    log = (run_dir / "logs/rank-0000.log").read_bytes().decode()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log) is None
    logged = re.findall(r"^\d{4}-\d\d-\d\d [\d:]{8} step (\d+)/20: loss .* GB", log, re.M)
    assert logged == [str(step) for step in range(1, 21)]
    assert (run_dir / "logs/rank-0001.log").exists()
    assert "done, exit code 0" in (run_dir / "logs/slurm.log").read_text()


def test_a_mistake_ends_the_job_with_its_message_last(cluster, tiny, tmp_path):
    run_dir = tmp_path / "run"
    job = cluster.submit(*tiny, f"resume={tmp_path}", f"run_dir={run_dir}")
    cluster.wait(job, "FAILED")
    assert cluster.job(job)["ExitCode"] == "2:0" and attempt(run_dir)["attempt"] == 1
    log = (run_dir / "logs/slurm.log").read_text()
    assert f"failed, exit code 2 (srun: 2)\n{status(run_dir)['message']}\n" in log
    assert log.endswith("Use resume=auto.\n")


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_deepspeed_on_two_nodes(cluster, tiny, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "train.stop_after=8", f"run_dir={run_dir}"]
    job = cluster.submit(*common, "engine=deepspeed", NODES=2, DS_ACCELERATOR="cpu")
    cluster.wait(job, "COMPLETED")
    # fp32 sums in another order: about 1e-7 a step, which Adam amplifies
    assert losses(run_dir) == pytest.approx(undisturbed(8, 2), rel=2e-5)


def test_a_sweep(cluster, tiny, tmp_path, undisturbed):
    sweep = tmp_path / "sweep"
    sweep.write_text(
        f"run_dir={tmp_path}/a optim.lr=1e-3\nrun_dir={tmp_path}/b 'run_name=two words'\n"
    )
    common = [*tiny, f"train.steps={STEPS}", "train.stop_after=6"]
    job = cluster.submit("--sweep", str(sweep), "--at-once", "1", *common)
    cluster.wait(f"{job}_1", "COMPLETED")
    cluster.wait(f"{job}_2", "COMPLETED")
    assert losses(tmp_path / "b") == undisturbed(6, 1) != losses(tmp_path / "a")
    assert "run_name: two words" in (tmp_path / "b/config.yaml").read_text()


def test_time_limit(cluster, tiny, tmp_path, undisturbed):
    """USR1 before the limit: the run saves, goes back to the queue, and ends in its next turn."""
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "checkpoint.every=0", f"run_dir={run_dir}"]
    job = cluster.submit(*common, "train.stop_after=300", TIME=10, STOP_SECONDS=10)
    wait_for_step(run_dir, 10)
    pause(attempt(run_dir)["pid"])
    # the limit comes now, in 30 to 90 seconds, however long the start took
    hours, minutes, seconds = map(int, cluster.job(job)["RunTime"].split(":"))
    limit = 60 * hours + minutes + (seconds + 30) // 60 + 1
    cluster.run(f"scontrol update JobId={job} TimeLimit={limit}")
    wait_until(lambda: cluster.job(job).get("Restarts") == "1", "a requeue")
    cluster.run(f"scontrol update JobId={job} TimeLimit=10")
    stopped = status(run_dir)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75)
    cluster.wait(job, "COMPLETED")
    log = (run_dir / "logs/slurm.log").read_text()
    assert "stopped, exit code 75" in log and "done, exit code 0" in log
    assert losses(run_dir) == undisturbed(300, 1)
    assert (
        f"resuming from {run_dir}/checkpoints/step-{stopped['step']:08d}"
        in (run_dir / "logs/rank-0000.log").read_text()
    )


def test_preemption(cluster, tiny, tmp_path, undisturbed):
    """TERM for a job of higher priority: saved at the step it was at, and done after that job."""
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "checkpoint.every=0", f"run_dir={run_dir}"]
    low = cluster.submit(*common, "train.stop_after=300", PARTITION="low")
    wait_for_step(run_dir, 10)
    pause(attempt(run_dir)["pid"])
    high = cluster.run(
        "sbatch --parsable -p high -N 2 --exclusive -o /dev/null --wrap true"
    ).strip()
    cluster.wait(high, "COMPLETED")
    cluster.wait(low, "COMPLETED")
    assert cluster.job(low)["Restarts"] == "1"
    assert "SIGTERM" in (run_dir / "logs/rank-0000.log").read_text()
    assert losses(run_dir) == undisturbed(300, 1)


def test_dead_node_with_two_writers(cluster, tiny, tmp_path, undisturbed):
    """The node is dead to SLURM, which starts the job elsewhere; the old process goes on there.

    The later one wins: the earlier ends itself at its next write, and has damaged nothing.
    """
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "checkpoint.every=2", f"run_dir={run_dir}"]
    job = cluster.submit(*common, "train.stop_after=100")
    wait_for_step(run_dir, 10)
    node = cluster.job(job)["BatchHost"]
    first = attempt(run_dir)
    try:
        pause(first["pid"])
        cluster.kill_node(node)
        wait_until(lambda: attempt(run_dir)["pid"] != first["pid"], "the job elsewhere")
        wait_for_step(run_dir, 20)
        os.kill(first["pid"], signal.SIGCONT)
        cluster.wait(job, "COMPLETED")
        assert cluster.job(job)["BatchHost"] != node and cluster.job(job)["Restarts"] == "1"
        second = attempt(run_dir)
        assert second["launch"] == first["launch"] + 1 and second["host"] != first["host"]
        wait_until(lambda: not Path(f"/proc/{first['pid']}").exists(), "the old process's end")
        log = (run_dir / "logs/rank-0000.log").read_text()
        assert f"belongs to a later start of this run (on {second['host']}" in log
        assert losses(run_dir) == undisturbed(100, 1)
    finally:
        cluster.start_node(node)
        cluster.run(f"scontrol update NodeName={node} State=RESUME")
        idle = f"sinfo -h -N -p main -n {node} -t idle -o %N"
        wait_until(lambda: node in cluster.run(idle), f"{node}'s return")
