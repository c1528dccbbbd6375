"""The scripts of launch/ on a real SLURM: requeued, preempted, deserted, and no step differs."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import REPOSITORY, losses, run_to_end
from slurm_cluster import Cluster, unavailable, wait_for

STEPS = 4000  # of the schedule; each test ends earlier, at its `train.stop_after`

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.environment |= {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/kernels",
        "GPUS_PER_NODE": "0",
        "CPUS_PER_PROCESS": "1",
        "OMP_NUM_THREADS": "1",
        "TIME": "10",
    }
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def undisturbed(
    tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], dict[int, float]]:
    """(steps, processes) -> the losses of a run that nothing happens to."""

    def losses_of(steps: int, processes: int) -> dict[int, float]:
        run_dir = tmp_path_factory.mktemp("undisturbed")
        command = [*tiny, f"train.steps={STEPS}", f"train.stop_after={steps}"]
        run_to_end([*command, f"run_dir={run_dir}"], 0 if processes == 1 else processes)
        return losses(run_dir)

    return losses_of


def wait_for_step(run_dir: Path, step: int, seconds: float = 90) -> None:
    path = run_dir / "metrics.jsonl"
    wait_for(
        lambda: path.exists() and f'"step": {step},' in path.read_text(), seconds, f"step {step}"
    )


def status(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "status.json").read_text())


def test_two_nodes(cluster, tiny, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "train.stop_after=20", f"run_dir={run_dir}"]
    job = cluster.submit(*common, NODES=2)
    cluster.wait(job, "COMPLETED", 90)
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    assert losses(run_dir) == undisturbed(20, 2)
    assert status(run_dir)["state"] == "done"
    assert "2 x " in (run_dir / "logs/rank-0000.log").read_text()
    assert (run_dir / "logs/rank-0001.log").exists()
    assert "done, exit code 0" in (run_dir / "logs/slurm.log").read_text()


def test_a_sweep(cluster, tiny, tmp_path, undisturbed):
    sweep = tmp_path / "sweep"
    sweep.write_text(
        f"run_dir={tmp_path}/a optim.lr=1e-3\nrun_dir={tmp_path}/b 'run_name=two words'\n"
    )
    common = [*tiny, f"train.steps={STEPS}", "train.stop_after=6"]
    job = cluster.submit("--sweep", str(sweep), "--at-once", "1", *common)
    cluster.wait(f"{job}_1", "COMPLETED", 60)
    cluster.wait(f"{job}_2", "COMPLETED", 60)
    assert losses(tmp_path / "b") == undisturbed(6, 1) != losses(tmp_path / "a")
    assert "run_name: two words" in (tmp_path / "b/config.yaml").read_text()


def test_time_limit(cluster, tiny, tmp_path, undisturbed):
    """USR1 before the limit: the run saves, goes back to the queue, and ends in its next turn."""
    run_dir = tmp_path / "run"
    common = [*tiny, f"train.steps={STEPS}", "checkpoint.every=0", f"run_dir={run_dir}"]
    job = cluster.submit(*common, "train.stop_after=1500", TIME=1, STOP_SECONDS=40)
    wait_for(lambda: cluster.job(job).get("Restarts") != "0", 90, "a requeue")
    stopped = status(run_dir)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75)
    cluster.wait(job, "COMPLETED", 120)
    log = (run_dir / "logs/slurm.log").read_text()
    assert "stopped, exit code 75" in log and "done, exit code 0" in log
    assert losses(run_dir) == undisturbed(1500, 1)
    assert (
        f"resuming from {run_dir}/checkpoints/step-{stopped['step']:08d}"
        in (run_dir / "logs/rank-0000.log").read_text()
    )


def test_preemption(cluster, tiny, tmp_path, undisturbed):
    """TERM from a job of higher priority: saved at the step it was at, and done after that job."""
    run_dir, other = tmp_path / "run", tmp_path / "other"
    common = [*tiny, f"train.steps={STEPS}", "checkpoint.every=0"]
    low = cluster.submit(
        *common, "train.stop_after=1500", f"run_dir={run_dir}", NODES=2, PARTITION="low"
    )
    wait_for_step(run_dir, 20)
    high = cluster.submit(
        *common, "train.stop_after=2", f"run_dir={other}",
        NODES=2, CPUS_PER_PROCESS=2, PARTITION="high",
    )  # fmt: skip
    cluster.wait(high, "COMPLETED", 90)
    cluster.wait(low, "COMPLETED", 120)
    assert cluster.job(low)["Restarts"] == "1"
    assert losses(run_dir) == undisturbed(1500, 2)
    assert "SIGTERM" in (run_dir / "logs/rank-0000.log").read_text()


def test_dead_node_with_two_writers(cluster, tiny, tmp_path, undisturbed):
    """The node is dead to SLURM, which starts the job elsewhere; the old process goes on there.

    The later one wins: the earlier ends itself at its next write, and has damaged nothing.
    """
    run_dir = tmp_path / "run"
    job = cluster.submit(
        *tiny, f"train.steps={STEPS}", "train.stop_after=4000", f"run_dir={run_dir}",
    )  # fmt: skip
    wait_for_step(run_dir, 10)
    node = cluster.job(job)["BatchHost"]
    first = json.loads((run_dir / "attempt.json").read_text())
    cluster.kill_node(node)
    try:
        wait_for(lambda: cluster.job(job).get("Restarts") == "1", 60, "the job elsewhere")
        cluster.wait(job, "COMPLETED", 120)
        assert cluster.job(job)["BatchHost"] != node
        second = json.loads((run_dir / "attempt.json").read_text())
        assert second["launch"] == first["launch"] + 1 and second["host"] != first["host"]
        log = (run_dir / "logs/rank-0000.log").read_text()
        assert "belongs to a later start of this run" in log
        assert not Path(f"/proc/{first['pid']}").exists()
        assert losses(run_dir) == undisturbed(4000, 1)
    finally:
        cluster.start_node(node)
        idle = f"sinfo -h -N -p main -n {node} -t idle -o %N"
        wait_for(lambda: node in cluster.run(idle), 30, f"{node} to come back")
