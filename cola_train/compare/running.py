"""The members of a comparison, each a `cola-train` of its own, some at a time on this machine.

A signal is passed on: the runs save, and the same command goes on with them. Runs that outlive a
command that was killed are waited for by the next one. Imports no torch.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cola_train.compare.journal import Journal, command, ending, last_words, run_folder
from cola_train.compare.members import Member
from cola_train.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL
from cola_train.progress import say
from cola_train.run.status import ATTEMPT, next_launch, read_record

LOG = "log.txt"  # in a run's folder: what it said
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
VISIBLE = "CUDA_VISIBLE_DEVICES"
RESTARTS = 3  # of a run that stops though nobody has told this command to


class Process(Protocol):
    """What is asked of a run's process; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def send_signal(self, number: int) -> None: ...


def start(words: Sequence[str], log: Path, gpu: str | None) -> Process:
    """`cola-train WORDS`, which adds what it says to the log. gpu: the only one it may use; None:
    the usual ones."""
    environment = dict(os.environ) if gpu is None else {**os.environ, VISIBLE: gpu}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "cola_train", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # a terminal's Ctrl-C comes by way of us
        )


def gpus() -> list[str]:
    """Those that this process may use, as `VISIBLE` names them. Asks the driver's own program:
    torch takes seconds to import."""
    if (given := os.environ.get(VISIBLE)) is not None:
        return given.split(",")
    ask = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True)
        return answer.stdout.split()
    return []


@dataclass(frozen=True)
class Orphan:
    """The process of a run that another command started, which was killed."""

    run_dir: Path
    pid: int

    @classmethod
    def of(cls, run_dir: Path) -> "Orphan | None":
        """The process on this machine that the run's folder belongs to, if it lives."""
        claim = read_record(run_dir / ATTEMPT)
        if claim.get("host") != socket.gethostname():
            return None
        orphan = cls(run_dir, claim["pid"])
        return orphan if orphan.poll() is None else None

    def poll(self) -> int | None:
        """0 for any end: its code is not ours to see."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return 0
        return None if os.fsencode(self.run_dir.name) in words else 0  # else: another's number

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


@contextmanager
def noted_signals(noted: list[int]) -> Iterator[None]:
    """Signals that come are put into the list, and do nothing else."""
    handlers = {n: signal.signal(n, lambda number, _: noted.append(number)) for n in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass
class Going:
    """A member's run.

    launch: the number of its start. gpu: that it was given.
    """

    member: Member
    process: Process
    launch: int
    gpu: str | None = None


@dataclass
class Local:
    """Runs on this machine, `jobs` at a time, each with its share of the cores.

    gpus: where there are several, each run has one, the least used.
    """

    folder: Path
    jobs: int
    start: Callable[[Sequence[str], Path, str | None], Process] = start
    gpus: Sequence[str] = ()
    signals: list[int] = field(default_factory=list)  # that have come
    going: list[Going] = field(default_factory=list)
    stops: dict[str, int] = field(default_factory=dict)  # by member: of its own accord

    def run(self, journal: Journal) -> int:
        """Until nothing is left, or a signal; returns the exit code.

        Raises:
            OSError: the folder cannot be written. The runs have saved and ended.
        """
        try:
            with noted_signals(self.signals):
                told = 0
                self._fill(journal)
                while self.going:
                    time.sleep(0.2)
                    if len(self.signals) > told:
                        self._pass_on(first=told == 0)
                        told = len(self.signals)
                    for run in [run for run in self.going if self._has_ended(run)]:
                        self.going.remove(run)
                        self._enter(run, journal)
                    self._fill(journal)
        except BaseException:
            self._tell(signal.SIGTERM)
            while not all(self._has_ended(run) for run in self.going):
                time.sleep(0.2)
            raise
        return EXIT_STOPPED_BY_SIGNAL if self.signals else EXIT_DONE

    def _fill(self, journal: Journal) -> None:
        """Start what there is room for."""
        while len(self.going) < self.jobs and not self.signals:
            names = {run.member.name for run in self.going}
            left = [member for member in journal.open() if member.name not in names]
            if not left:
                return
            if not journal.enter_done(left[0]):
                self.going.append(self._begin(left[0]))

    def _begin(self, member: Member) -> Going:
        run_dir = run_folder(self.folder, member)
        launch = next_launch(run_dir)
        if (orphan := Orphan.of(run_dir)) is not None:
            say(f"{member.name}: its run is going on already, as process {orphan.pid}")
            return Going(member, orphan, launch - 1)
        run_dir.mkdir(parents=True, exist_ok=True)
        words = command(self.folder, member)
        if not any(word.lstrip("+").startswith("train.threads=") for word in words):
            words.append(f"train.threads={max(1, (os.cpu_count() or 1) // self.jobs)}")
        gpu = self._least_used_gpu()
        return Going(member, self.start(words, run_dir / LOG, gpu), launch, gpu)

    def _least_used_gpu(self) -> str | None:
        if len(self.gpus) < 2:
            return None
        used = [run.gpu for run in self.going]
        return min(self.gpus, key=used.count)

    def _has_ended(self, run: Going) -> bool:
        if run.process.poll() is None:
            return False
        # One of an earlier command may have claimed the folder after ours, which ended by that.
        orphan = Orphan.of(run_folder(self.folder, run.member))
        if orphan is not None:
            run.process = orphan
        return orphan is None

    def _enter(self, run: Going, journal: Journal) -> None:
        member, run_dir = run.member, run_folder(self.folder, run.member)
        end = ending(run_dir, run.launch)
        if self.signals and end in ("stopped", "died"):
            return  # it goes on with the next command
        self.stops[member.name] = self.stops.get(member.name, 0) + (end == "stopped")
        if end == "stopped" and self.stops[member.name] <= RESTARTS:
            say(f"{member.name}: stopped, and not by this command; it is started again")
            return
        why = {
            "stopped": f"it stopped {RESTARTS + 1} times of its own accord; see {run_dir / LOG}",
            "died": death(run.process.poll() or 0, run_dir / LOG),
        }
        journal.enter(member, end, why.get(end, ""))

    def _pass_on(self, first: bool) -> None:
        if first:
            say(f"{signal.Signals(self.signals[0]).name}: the runs save, and this ends")
        # a Ctrl-C after that is of one who will not wait
        again = signal.SIGINT in self.signals[1:]
        self._tell(signal.SIGKILL if again else signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for run in self.going:
            run.process.send_signal(number)


def death(code: int, log: Path) -> str:
    """What is known of a run that has ended without saying how."""
    if code == -signal.SIGKILL:
        return f"killed (SIGKILL), as a machine does that is out of memory; see {log}"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; see {log}"
    return last_words(log) or f"it ended without a word: {log}"
