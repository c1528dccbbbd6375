"""The members of a comparison, each a `cola-train` of its own, some at a time on this machine.

A signal is passed on: the runs save, and the same command goes on with them. Imports no torch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cola_train.compare.ledger import append, read_ledger
from cola_train.compare.measured import done_line, failed_line
from cola_train.compare.members import Member, Members, finished
from cola_train.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL, UserError
from cola_train.progress import say
from cola_train.run.outlook import duration
from cola_train.run.status import STATUS, read_record

RUNS = "runs"  # in a comparison's folder
LOG = "log.txt"  # in a run's folder: what it said

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run_folder(folder: Path, member: Member) -> Path:
    """Its own, under any plan: a run goes on with what is in its folder."""
    return folder / RUNS / f"{member.name}+{member.key[:6]}"


def command(folder: Path, member: Member) -> list[str]:
    """The words of `cola-train` for it."""
    run_dir = run_folder(folder, member)
    return [*member.words, f"run_name={member.name}", f"run_dir={run_dir}"]


def collect(folder: Path, member: Member) -> dict[str, Any] | None:
    """The ledger's line of a member that has ended, by its folder; None, if it has not: it was
    stopped, and goes on when it is started again."""
    run_dir = run_folder(folder, member)
    status = read_record(run_dir / STATUS)
    if status.get("exit_code") == EXIT_STOPPED_BY_SIGNAL:
        return None
    if status.get("state") != "done":
        return failed_line(member, run_dir, status.get("message") or last_words(run_dir))
    try:
        return done_line(member, run_dir)
    except UserError as error:
        return failed_line(member, run_dir, str(error))


def last_words(run_dir: Path) -> str:
    """The last line that a run said."""
    try:
        lines = (run_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else f"it ended without a word: {run_dir}"


class Journal:
    """Which members have ended, on paper and on the terminal."""

    def __init__(self, folder: Path, members: Members, retry: bool) -> None:
        """retry: those that failed before are run again."""
        self.folder, self.members = folder, members
        lines = read_ledger(folder)
        if retry:
            lines = {name: line for name, line in lines.items() if line["state"] == "done"}
        self.lines = lines
        self.began, self.flops = time.monotonic(), 0.0

    def open(self) -> list[Member]:
        """The members that can run now and have not."""
        return [m for m in self.members.known(self.lines) if not finished(m, self.lines)]

    def current(self) -> list[dict[str, Any]]:
        """The lines of members that the plan has."""
        return [
            self.lines[member.name]
            for member in self.members.known(self.lines)
            if finished(member, self.lines)
        ]

    def enter(self, member: Member, line: dict[str, Any]) -> None:
        """Raises OSError if the ledger cannot be written."""
        append(self.folder, line)
        self.lines.pop(member.name, None)
        self.lines[member.name] = line
        self.flops += member.flops
        what = f"failed: {line['why']}"
        if line["state"] == "done":
            what = f"validation loss {line['val_loss']:.4f} ({duration(line['seconds'])})"
        say(f"{member.name}: {what}{self._left()}")

    def _left(self) -> str:
        left = self.open()
        if not left:
            return ""
        seconds = (time.monotonic() - self.began) * sum(m.flops for m in left) / self.flops
        return f"; {len(left)} more are known, {duration(seconds)}"


@dataclass
class Local:
    """Runs on this machine, `jobs` at a time, each with its share of the cores."""

    folder: Path
    jobs: int
    stopping: bool = False
    going: dict[str, tuple[Member, "subprocess.Popen[bytes]"]] = field(default_factory=dict)

    def run(self, journal: Journal) -> int:
        """Until nothing is left, or a signal; returns the exit code."""
        with self._listening():
            while True:
                if not self.stopping:
                    for member in journal.open():
                        if len(self.going) < self.jobs and member.name not in self.going:
                            self._start(member)
                if not self.going:
                    break
                for member in self._ended():
                    line = collect(self.folder, member)
                    if line is not None:
                        journal.enter(member, line)
                    elif not self.stopping:
                        say(f"{member.name}: stopped by a signal that was its own; it goes on")
        return EXIT_STOPPED_BY_SIGNAL if self.stopping else EXIT_DONE

    def _start(self, member: Member) -> None:
        run_dir = run_folder(self.folder, member)
        run_dir.mkdir(parents=True, exist_ok=True)
        words = command(self.folder, member)
        if not any(word.startswith("train.threads=") for word in words):
            words.append(f"train.threads={max(1, (os.cpu_count() or 1) // self.jobs)}")
        with (run_dir / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cola_train", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C comes by way of us
            )
        self.going[member.name] = (member, process)

    def _ended(self) -> Iterator[Member]:
        """Those that have, after a while."""
        time.sleep(0.2)
        for name, (member, process) in list(self.going.items()):
            if process.poll() is not None:
                del self.going[name]
                yield member

    @contextmanager
    def _listening(self) -> Iterator[None]:
        handlers = {number: signal.signal(number, self._signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        again = self.stopping
        self.stopping = True
        if not again:
            say(f"{signal.Signals(number).name}: the runs save, and this ends")
        for _, process in self.going.values():
            process.send_signal(signal.SIGKILL if again else signal.SIGTERM)
