"""One start of a run: its claim to the run's folder, and its word on how it ended.

Two programs may work on one folder: SLURM starts a job elsewhere when it has lost a node, and the
old processes there go on. So each start claims the folder (`attempt.json`), the latest claim
holds, and whoever has lost it ends before it makes anything else visible.
"""

import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cola_train import distributed
from cola_train.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER_ERROR, TrainingError, UserError
from cola_train.files import write_json
from cola_train.run.console import console_failures
from cola_train.run.status import (
    ATTEMPT,
    LATEST,
    LAUNCH_VARIABLE,
    STATUS,
    next_launch,
    read_record,
)


class SupersededError(TrainingError):
    """Another process has claimed the run's folder since."""


class Owner:
    """This start of the run in `run_dir`: the folder is its own until a later start claims it. All
    processes make it together; rank 0 claims.

    step: how far the run is, for status.json.
    """

    def __init__(self, run_dir: Path) -> None:
        """Raises SupersededError if a later launch has claimed the folder already."""
        self.run_dir = run_dir
        self.step = 0
        self.claim: dict[str, Any] = distributed.from_main(self._claim)

    def _claim(self) -> dict[str, Any]:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            # A launch starts its workers again and again, but takes the folder from none after it.
            launch = int(os.environ.get(LAUNCH_VARIABLE, 0)) or next_launch(self.run_dir)
            before = read_record(self.run_dir / ATTEMPT)
            self._note_end()
            if before.get("launch", 0) > launch:
                raise self._superseded(before)
            self.claim = {
                "launch": launch,
                "attempt": before.get("attempt", 0) + 1,
                "token": uuid.uuid4().hex,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            write_json(self.run_dir / ATTEMPT, self.claim)
            self._write_status("running", None)
        except OSError as error:
            raise UserError(f"run_dir: cannot write {self.run_dir}: {error.strerror}") from error
        return self.claim

    def _note_end(self) -> None:
        """An earlier version wrote no LATEST; but a run that has ended well was saved."""
        if not (self.run_dir / LATEST).exists():
            status = read_record(self.run_dir / STATUS)
            if status.get("state") in ("done", "stopped") and status.get("step"):
                self.published(status["step"])

    def check(self) -> None:
        """For whoever is about to change something in the folder.

        Raises SupersededError if another process has claimed it since.
        """
        latest = read_record(self.run_dir / ATTEMPT)
        if latest.get("token") != self.claim["token"]:
            raise self._superseded(latest)

    def published(self, step: int) -> None:
        """A checkpoint of `step` is whole and visible. On rank 0, from any thread."""
        write_json(self.run_dir / LATEST, {"step": step})

    def record(self, work: Callable[[], int]) -> int:
        """The exit code that `work()` returns, having called `end`; what it raises goes into
        status.json."""
        try:
            return work()
        except UserError as error:
            self.report("failed", EXIT_USER_ERROR, str(error))
            raise
        except TrainingError as error:
            self.report("failed", EXIT_FAULT, str(error))
            raise
        except BaseException as error:  # a peer or a machine that died, most likely
            self.report("lost", EXIT_FAULT, repr(error))
            raise

    def end(self, exit_code: int) -> None:
        """Everything is saved: whatever happens from here on, this was the end of the run."""
        if distributed.is_main():
            state = "done" if exit_code == EXIT_DONE else "stopped"
            self.report(state, exit_code, "; ".join(console_failures()))

    def report(self, state: str, exit_code: int, message: str = "") -> None:
        """Write status.json (see `cola_train.run.status.verdict` for the states), if the folder is
        still this start's. Where another process failed first, its report stays."""
        try:
            self.check()
            said = read_record(self.run_dir / STATUS).get("state")
            if state != "lost" or said == "running":
                self._write_status(state, exit_code, message)
        except (OSError, SupersededError):
            pass  # the folder is full, or another's: our exit code has to do

    def _write_status(self, state: str, exit_code: int | None, message: str = "") -> None:
        status = {"state": state, "exit_code": exit_code, "step": self.step, "message": message}
        write_json(self.run_dir / STATUS, status | {"rank": distributed.rank()} | self.claim)

    def _superseded(self, by: dict[str, Any]) -> SupersededError:
        where = "its attempt.json is gone"
        if by:
            where = f"on {by.get('host')}, process {by.get('pid')}"
        return SupersededError(
            f"{self.run_dir} belongs to a later start of this run ({where}); this one ends at "
            f"step {self.step} and leaves the folder alone"
        )
