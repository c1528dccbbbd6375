"""Ten SIGKILLs at random moments of one run: no step's loss differs from an undisturbed run's."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import launch, losses, ranks_of, read_json, run_to_end, wait_until

STEPS = 200
TARGETS = ["one rank", "all ranks", "the agent"]


class DisturbedRun:
    """A run of two processes under torchrun, which is started again when torchrun has ended."""

    def __init__(self, overrides: list[str], run_dir: Path, log: Path) -> None:
        self.overrides = [*overrides, f"run_dir={run_dir}"]
        self.run_dir, self.log = run_dir, log
        self.seen: set[int] = set()  # processes of ranks
        self.start()

    def start(self) -> None:
        with self.log.open("a") as output:
            self.agent = launch(self.overrides, 2, restarts=20, output=output)

    def attempt(self) -> int:
        path = self.run_dir / "attempt.json"
        return read_json(path)["attempt"] if path.exists() else 0

    def step(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0

    def unfinished(self) -> list[Path]:
        return list((self.run_dir / "checkpoints").glob(".step-*.partial"))

    def ranks(self) -> dict[int, int]:
        ranks = ranks_of(self.agent.pid)
        self.seen |= set(ranks.values())
        return ranks

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until `condition` holds, starting torchrun again wherever it has ended."""

        def reached() -> bool:
            if condition():
                return True
            if self.agent.poll() is not None:
                assert self.agent.returncode != 0, "it ended before the last kill"
                self.start()
            return False

        wait_until(reached, f"{what}; see {self.log}", every=0.002)

    def kill(self, target: str, step: int, while_saving: bool, choose: random.Random) -> str:
        """SIGKILL when the run has come to `step`; says where it fell."""
        before = self.attempt()
        self.wait(lambda: len(self.ranks()) == 2 and self.step() >= step, f"step {step}")
        while True:
            ranks = self.ranks()
            self.wait(lambda: not while_saving or bool(self.unfinished()), "a save")
            send(signal.SIGSTOP, ranks.values())
            if not while_saving or self.unfinished():
                break
            send(signal.SIGCONT, ranks.values())  # it was whole before we could strike
        where = f"{target} at step {self.step()}, attempt {self.attempt()}"
        where += ", a checkpoint being written" if self.unfinished() else ""
        if target == "the agent":  # its ranks live on, and are there when the next start begins
            before = self.attempt()
            self.agent.kill()
            self.agent.wait()
            self.wait(lambda: self.attempt() > before, "the next attempt")
            send(signal.SIGCONT, ranks.values())
        else:
            victims = list(ranks.values())
            victims = [choose.choice(victims)] if target == "one rank" else victims
            send(signal.SIGKILL, victims)
            send(signal.SIGCONT, set(ranks.values()) - set(victims))
        return where

    def end(self) -> None:
        self.wait(lambda: self.agent.poll() == 0, "the end")
        alive = lambda: any(Path(f"/proc/{process}").exists() for process in self.seen)  # noqa: E731
        wait_until(lambda: not alive(), "the end of superseded processes")


def send(number: signal.Signals, processes) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


@pytest.mark.slow
def test_ten_kills_in_one_run(tiny, tmp_path, record_property):
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    choose = random.Random(seed)
    steps = sorted(choose.sample(range(3, STEPS - 10), 10))
    targets = TARGETS * 3 + [choose.choice(TARGETS)]
    choose.shuffle(targets)
    saving = set(choose.sample(range(10), 4))
    record_property("chaos", f"CHAOS_SEED={seed}")  # in the summary, see conftest.py
    common = [*tiny, f"train.steps={STEPS}", "engine.timeout_seconds=60", "train.hang_seconds=60"]
    run = DisturbedRun(common, tmp_path / "disturbed", tmp_path / "log")
    try:
        for i, (target, step) in enumerate(zip(targets, steps, strict=True)):
            where = run.kill(target, step, i in saving, choose)
            record_property("chaos", f"kill {i + 1}: {where}")
        run.end()
    finally:
        send(signal.SIGKILL, run.seen)
        if run.agent.poll() is None:
            os.killpg(run.agent.pid, signal.SIGKILL)
    run_to_end([*common, f"run_dir={tmp_path / 'undisturbed'}"], processes=2)
    expected = losses(tmp_path / "undisturbed")
    assert list(expected) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "disturbed") == expected
    superseded = (tmp_path / "log").read_text().count("belongs to a later start of this run")
    assert superseded >= targets.count("the agent")
