"""Where the members of a comparison run, how a run has ended, and which are left. No torch."""

import os
import time
from pathlib import Path
from typing import Any, Protocol

from cola_train.compare.ledger import append, read_ledger
from cola_train.compare.measured import done_line, failed_line, of_member
from cola_train.compare.members import Member, Members, finished
from cola_train.errors import EXIT_STOPPED_BY_SIGNAL, UserError
from cola_train.progress import say
from cola_train.run.outlook import duration
from cola_train.run.status import STATUS, read_record

RUNS = "runs"  # in a comparison's folder


class Named(Protocol):
    """A member, or what stands for it."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...


def run_folder(folder: Path, member: Named) -> Path:
    """Its own, under any plan: a run goes on with what is in its folder."""
    return folder / RUNS / f"{member.name}+{member.key[:6]}"


def command(folder: Path, member: Member) -> list[str]:
    """The words of `cola-train` for it."""
    run_dir = run_folder(folder, member)
    return [*member.words, f"run_name={member.name}", f"run_dir={run_dir}"]


def ending(run_dir: Path, launch: int) -> str:
    """How a run has ended that nothing trains any more: done; failed; stopped (by a signal, or by
    its watchdog: it goes on when it is started again); died (without a word).

    launch: the number of its start (`run.status.next_launch`); what an earlier one has said of
    its end does not count.
    """
    status = read_record(run_dir / STATUS)
    state = status.get("state", "running")
    if status.get("launch", 0) < launch or state == "running":
        return "died"
    if status["exit_code"] == EXIT_STOPPED_BY_SIGNAL:
        return "stopped"
    return "done" if state == "done" else "failed"


def is_done(run_dir: Path) -> bool:
    """Whether a run has ended well there, at any time."""
    return ending(run_dir, 0) == "done"


def line_of(folder: Path, member: Member, end: str, why: str = "") -> dict[str, Any]:
    """The ledger's line of a member that has ended.

    end: as `ending` says. why: what is known of one that died.
    """
    run_dir = run_folder(folder, member)
    if end == "done":
        try:
            return done_line(member, run_dir)
        except UserError as error:
            why = f"{error}; remove {run_dir} to run it anew"
    elif end == "failed":
        why = read_record(run_dir / STATUS).get("message") or f"it has failed; see {run_dir}"
    # from the comparison's folder, which may be moved
    return failed_line(member, run_dir, why.replace(f"{folder}{os.sep}", ""))


def last_words(log: Path) -> str:
    """The last line that a run said; empty, if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else ""


class Journal:
    """Which members have ended, on paper and on the terminal."""

    def __init__(self, folder: Path, members: Members, retry: bool) -> None:
        """retry: those that failed before are run again."""
        self.folder, self.members = folder, members
        lines = read_ledger(folder)
        if retry:
            lines = {name: line for name, line in lines.items() if line["state"] == "done"}
        self.lines = lines
        self.began, self.flops = time.monotonic(), 0.0  # of what has run since

    def known(self) -> list[Member]:
        return self.members.known(self.lines)

    def open(self) -> list[Member]:
        """The members that can run now and have not."""
        return [member for member in self.known() if not finished(member, self.lines)]

    def current(self) -> list[dict[str, Any]]:
        """The lines of members that the plan has."""
        return [self.lines[member.name] for member in self.known() if finished(member, self.lines)]

    def enter_done(self, member: Member) -> bool:
        """If its run has ended well and the ledger does not know yet: a command that ran it was
        killed; or another member was given the same, as where whole runs choose rates. Raises as
        `enter`."""
        if (same := self._given_the_same(member)) is not None:
            self._enter(member, {**same, **of_member(member)})
            return True
        if not is_done(run_folder(self.folder, member)):
            return False
        self._enter(member, line_of(self.folder, member, "done"))
        return True

    def _given_the_same(self, member: Member) -> dict[str, Any] | None:
        """The line of another that has ended well. Not of one that measured its speed, which has
        no curve."""
        for line in self.lines.values():
            ended_well = line["state"] == "done" and line["phase"] != "speed"
            if ended_well and line["key"] == member.key:
                return line
        return None

    def enter(self, member: Member, end: str, why: str = "") -> None:
        """A member's run has ended; arguments as of `line_of`.

        Raises:
            OSError: the ledger cannot be written.
        """
        self.flops += member.flops
        self._enter(member, line_of(self.folder, member, end, why))

    def _enter(self, member: Member, line: dict[str, Any]) -> None:
        append(self.folder, line)
        self.lines.pop(member.name, None)
        self.lines[member.name] = line
        what = f"failed: {line['why']}"
        if line["state"] == "done":
            what = f"validation loss {line['val_loss']:.4f} ({duration(line['seconds'])})"
        say(f"{member.name}: {what}{self._left()}")

    def _left(self) -> str:
        left = self.open()
        if not left:
            return ""
        told = f"; {len(left)} more are known"
        if not self.flops:
            return told
        seconds = (time.monotonic() - self.began) * sum(m.flops for m in left) / self.flops
        return f"{told}, {duration(seconds)}"
