"""`cola-compare` killed, stopped and started again, against one that nothing happens to."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import WORKERS, read_json, run_forked, wait_for_step, wait_until
from slurm_cluster import unavailable

from cola_train.compare.plan import plain, read_plan
from cola_train.compare.report import write_report

STEPS = 60
MEMBERS = ["cola+seed-0", "cola+seed-1", "full+seed-0", "full+seed-1"]
TIMES = {"seconds": 1.0, "tokens_per_second": 1.0, "peak_memory_bytes": 1, "date": "2000-01-01"}


def compare(folder: Path, words: list[str], expect: int = 0, **variables: str) -> str:
    """What it says, on stdout and stderr."""
    worker = [WORKERS / "compare.py", folder.with_suffix(".pid"), f"folder={folder}", *words]
    return run_forked(*worker, expect=expect, together=True, **variables).stdout


def disturbed(
    folder: Path, words: list[str], begun: Callable[[], object], number: int, **variables: str
) -> str:
    """Signal `number` to it when `begun` returns, SIGKILL to its runs too; what it said."""
    said: list[str] = []
    expect, pid = (-number if number == signal.SIGKILL else 75), folder.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    thread = threading.Thread(
        target=lambda: said.append(compare(folder, words, expect, **variables))
    )
    thread.start()
    begun()
    (os.killpg if number == signal.SIGKILL else os.kill)(int(pid.read_text()), number)
    thread.join()
    return said[0]  # it ended as expected


def trains(folder: Path, member: str) -> Path:
    """The run's folder, when it is in its midst."""
    wait_until(lambda: any(folder.glob(f"runs/{member}+*")), f"{member} has begun")
    (run_dir,) = folder.glob(f"runs/{member}+*")
    wait_for_step(run_dir, 10)
    return run_dir


def entered(folder: Path, member: str) -> None:
    """When the ledger has the member."""
    ledger = folder / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and f'"{member}"' in ledger.read_text(), member)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The ledger's lines, each time the same."""
    lines = [json.loads(text) for text in (folder / "ledger.jsonl").read_text().splitlines()]
    for line in lines:
        line["curve"] = [[step, tokens, 1.0, loss] for step, tokens, _, loss in line["curve"]]
        line |= TIMES
    return lines


def report_of(folder: Path, into: Path) -> dict[str, bytes]:
    """The files of the report, by name, as its ledger makes them without times."""
    plan = read_plan(folder)
    assert plan is not None
    into.mkdir()
    write_report(into, plain(plan), timeless(folder))
    return {path.name: path.read_bytes() for path in into.iterdir()}


@pytest.fixture(scope="session")
def words(tiny: list[str]) -> list[str]:
    of_runs = [word for word in tiny if not word.startswith("evaluation.every")]
    return [*of_runs, "methods=[full,cola]", "seeds=2", "lr=own", f"tokens={STEPS * 256}"]


@pytest.fixture(scope="session")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that nothing happens to."""
    folder = tmp_path_factory.mktemp("comparison") / "whole"
    compare(folder, words)
    return folder


def assert_same(cut: Path, whole: Path, tmp_path: Path) -> None:
    lines = sorted(timeless(cut), key=lambda line: line["member"])
    assert [line["member"] for line in lines] == MEMBERS
    assert {line["state"] for line in lines} == {"done"}
    assert lines == sorted(timeless(whole), key=lambda line: line["member"])
    assert report_of(cut, tmp_path / "a") == report_of(whole, tmp_path / "b")


def test_killed_twice_and_stopped_it_comes_to_the_same_report(tmp_path, words, whole):
    cut = tmp_path / "cut"
    disturbed(cut, words, lambda: trains(cut, "full+seed-0"), signal.SIGKILL)
    disturbed(cut, [], lambda: trains(cut, "cola+seed-0"), signal.SIGKILL)
    said = disturbed(cut, [], lambda: trains(cut, "cola+seed-1"), signal.SIGTERM)
    assert "SIGTERM: the runs save, and this ends" in said
    (run_dir,) = cut.glob("runs/cola+seed-1+*")
    assert read_json(run_dir / "status.json")["state"] == "stopped"
    said = compare(cut, [])
    assert "full+seed" not in said and "cola+seed-0" not in said  # what is done does not run again
    assert_same(cut, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_the_same_on_a_cluster(cluster, tmp_path, words, whole):
    """Jobs go on while the command is killed; the next ones find them."""
    cut, slurm = tmp_path / "cut", ["slurm=true", "jobs=1"]
    on = {name: value for name, value in cluster.environment.items() if name != "PYTHONPATH"}
    array = lambda: wait_until(lambda: any(cut.glob("slurm/*.json")), "an array")  # noqa: E731
    said = disturbed(cut, [*words, *slurm], array, signal.SIGKILL, **on)  # as it is submitted
    assert "job" not in said
    disturbed(cut, slurm, lambda: trains(cut, "full+seed-0"), signal.SIGKILL, **on)
    said = disturbed(cut, slurm, lambda: entered(cut, "full+seed-1"), signal.SIGTERM, **on)
    assert "SIGTERM: this ends, not what it has submitted (job" in said
    compare(cut, slurm, **on)
    attempts = {path: read_json(path)["attempt"] for path in cut.glob("runs/*/attempt.json")}
    assert len(attempts) == 4 and set(attempts.values()) == {1}  # no run was started twice
    assert_same(cut, whole, tmp_path)
