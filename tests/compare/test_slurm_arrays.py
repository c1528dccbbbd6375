"""What is submitted when, and what is made of it, with a SLURM of scripts; a real one is in
tests/launch/test_slurm_compare.py."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_cluster
import pytest
from fake_cluster import end, member, open_journal
from helpers import child_environment, wait_until

from cola_train.compare.journal import command
from cola_train.compare.slurm import Slurm
from cola_train.errors import UserError

Event = Callable[[], object]
SHORT = [member("full"), member("cola")]
WHOLE = {arm: [member(arm, "final", seed) for seed in range(2)] for arm in ("full", "cola")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a comparison, in a clone that is the current folder, on a cluster."""
    programs = fake_cluster.clone(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def run(folder: Path, *events: Event, retry: bool = False, patience: float = 0) -> tuple[int, dict]:
    """Exit code, and the states in the ledger; an event comes in each pause, the last again and
    again."""
    coming: Iterator[Event] = iter(events)

    class Eventful(Slurm):
        def _sleep(self, seconds: float) -> None:
            next(coming)()

    code = Eventful(folder, patience=patience).run(journal := open_journal(folder, retry))
    assert next(coming, None) is None
    return code, {name: line["state"] for name, line in journal.lines.items()}


def leaves(index: int, job: int = 1, log: str | None = "said") -> None:
    """A task leaves the queue; log: what its job has said, None: it never began."""
    queue = Path("queue").read_text().splitlines(keepends=True)
    gone = [line for line in queue if line.split()[1:] == [str(job), str(index)]]
    assert gone
    Path("queue").write_text("".join(line for line in queue if line not in gone))
    if log is not None:
        logs = next(Path("mine/slurm").glob(gone[0].split()[0])).with_suffix(".logs") / "today"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{index}.log").write_text(log)


def ends(folder: Path, each, index: int, job: int = 1, **how) -> None:
    end(folder, each, **how)
    leaves(index, job)


def submitted(job: int) -> list[list[str]]:
    """The words of each run of a job, as launch/submit.sh splits them."""
    split = ["xargs", "-n1", "printf", "%s\\n"]
    return [
        subprocess.run(split, input=line, capture_output=True, text=True).stdout.splitlines()
        for line in Path(f"lines.{job}").read_text().splitlines()
    ]


def test_whole_runs_follow_and_a_failed_one_stops_no_other(folder):
    code, states = run(
        folder,
        lambda: ends(folder, SHORT[0], 1),
        lambda: ends(folder, SHORT[1], 2, state="failed", code=1),
        lambda: leaves(
            1, job=2, log="job 2: unknown, exit code 1\n"
        ),  # it never claimed its folder
        lambda: ends(folder, WHOLE["full"][1], 2, job=2),
    )
    assert code == 0
    assert states == {"full+lr-0.001": "done", "cola+lr-0.001": "failed",
                      "full+seed-0": "failed", "full+seed-1": "done"}  # fmt: skip
    assert submitted(1) == [command(folder, each) for each in SHORT]
    assert submitted(2) == [command(folder, each) for each in WHOLE["full"]]
    assert "a=b c" in submitted(1)[0] and not Path("lines.3").exists()
    lines = [json.loads(text) for text in (folder / "ledger.jsonl").read_text().splitlines()]
    whys = {line["member"]: line.get("why") for line in lines}
    assert whys["cola+lr-0.001"] == "it said so"
    assert whys["full+seed-0"] == "job 2: unknown, exit code 1"
    assert not list(folder.glob("slurm/*.json"))


def test_a_signal_leaves_jobs_alone_and_the_next_command_waits_for_them(folder, capsys):
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    assert run(folder, stop) == (75, {})
    assert "SIGTERM" in (said := capsys.readouterr().err) and "job 1" in said
    end(folder, SHORT[0])
    leaves(1)  # meanwhile
    code, _ = run(
        folder,
        lambda: (leaves(1, 2), leaves(2, 2), end(folder, WHOLE["full"][0]),
                 end(folder, WHOLE["full"][1]), ends(folder, SHORT[1], 2, state="failed", code=1)),
    )  # fmt: skip
    assert code == 0
    assert [len(submitted(job)) for job in (1, 2)] == [2, 2] and not Path("lines.3").exists()


def test_killed_while_it_submits_it_submits_nothing_twice(folder):
    Path("slow").touch()
    words = [sys.executable, fake_cluster.__file__, str(folder)]
    with open("said", "w") as said:
        options = {"env": child_environment(), "stderr": said, "start_new_session": True}
        first = subprocess.Popen(words, **options)
        wait_until(Path("submitting").exists, "launch/submit.sh has begun", first)
        first.kill()
        assert not Path("queue").exists()
        second = subprocess.Popen(words, **options)
        found = "waiting for job 1, which an earlier command has submitted"
        wait_until(lambda: found in Path("said").read_text(), found, second, seconds=30)
    for each in (*SHORT, *WHOLE["full"], *WHOLE["cola"]):
        end(folder, each)  # as if the whole ones had been run before
    Path("queue").write_text("")
    assert (first.wait(60), second.wait(60)) == (-signal.SIGKILL, 0)
    assert len(submitted(1)) == 2 and not Path("lines.2").exists()


def test_cancelled_jobs_are_left_to_the_next_command(folder, capsys):
    cancel = lambda: (leaves(1, log=None), end(folder, SHORT[1], "stopped", 75), leaves(2))  # noqa: E731
    code, states = run(folder, cancel)
    assert (code, states) == (75, {})
    assert "cola+lr-0.001, full+lr-0.001; the same command" in capsys.readouterr().err
    failed = {"state": "failed", "code": 1, "launch": 2}
    code, states = run(
        folder,
        lambda: (ends(folder, SHORT[0], 1, 2, **failed), ends(folder, SHORT[1], 2, 2, **failed)),
    )
    assert (code, set(states.values())) == (0, {"failed"})


def test_while_a_task_is_requeued_or_slurm_is_silent_nothing_is_decided(folder, capsys):
    code, states = run(
        folder,
        lambda: (end(folder, SHORT[0], "stopped", 75), Path("down").touch(), Path("queue").touch()),
        lambda: Path("down").unlink(),
        lambda: (ends(folder, SHORT[0], 1, state="failed", code=1, launch=2),
                 ends(folder, SHORT[1], 2, state="failed", code=1)),
    )  # fmt: skip
    assert (code, set(states.values())) == (0, {"failed"})
    assert "squeue does not answer: slurm_load_jobs error" in capsys.readouterr().err


def test_what_another_node_wrote_last_may_come_late(folder):
    failed = {"state": "failed", "code": 1}
    _, states = run(
        folder,
        lambda: (end(folder, SHORT[0], "running"), leaves(1), ends(folder, SHORT[1], 2, **failed)),
        lambda: None,
        lambda: end(folder, SHORT[0], **failed),
        patience=60,
    )
    assert set(states.values()) == {"failed"}


def test_what_failed_is_submitted_again_when_asked(folder):
    failed = {"state": "failed", "code": 1}
    both = lambda: [ends(folder, SHORT[i], i + 1, **failed) for i in range(2)]  # noqa: E731
    assert run(folder, both)[0] == 0
    assert run(folder)[0] == 0 and not Path("lines.2").exists()
    again = lambda: [ends(folder, SHORT[i], i + 1, 2, launch=2, **failed) for i in range(2)]  # noqa: E731
    assert run(folder, again, retry=True)[0] == 0 and len(submitted(2)) == 2


def test_a_refused_job_leaves_nothing_behind(folder):
    Path("refused").touch()
    with pytest.raises(UserError, match=r"refuses full\+lr-0.001, cola(.|\n)*no such partition"):
        run(folder)
    assert not list(folder.glob("slurm/*.json"))


def test_without_slurm_or_a_clone_it_says_so(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(UserError, match=r"has no launch/submit\.sh; start it in a clone"):
        Slurm(folder)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no sbatch and no squeue here"):
        Slurm(folder)
