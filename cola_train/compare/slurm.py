"""The members of a comparison as job arrays of SLURM: submitted by launch/submit.sh, waited for.

The comparison's `slurm/` has a file for each array, with the members in it that are not in the
ledger yet. It is written before the array is submitted, and an array's name is its own: a command
that is started again finds by it what SLURM has. Imports no torch.
"""

import fcntl
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from cola_train.compare.journal import Journal, command, ending, last_words, run_folder
from cola_train.compare.members import Member
from cola_train.compare.running import noted_signals
from cola_train.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL, UserError
from cola_train.files import read_json, write_json, write_text
from cola_train.progress import say
from cola_train.run.status import ATTEMPT, next_launch, read_record

JOBS = "slurm"  # in a comparison's folder
LOCK = ".submitting"  # in there; held as long as a launch/submit.sh runs
SUBMIT = Path("launch", "submit.sh")  # of the clone that the command is started in
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0  # seconds between two questions to SLURM
PATIENCE = 60.0  # seconds until a network's file system shows what another node has written

Queue = dict[str, tuple[str, set[int]]]  # name of an array -> its job's number, its tasks


@dataclass(frozen=True)
class Task:
    """A member in an array.

    launch: the number that its first start there has at least.
    """

    name: str
    key: str
    launch: int


@dataclass
class Array:
    """A job array, and its tasks by index whose ends are not in the ledger.

    job: its number; None: it is not known whether it was submitted.
    """

    name: str
    job: str | None
    tasks: dict[int, Task]


@dataclass
class Slurm:
    """Runs on a cluster.

    jobs: of an array at a time; None: as many as the cluster has room for. The arrays are those in
    the folder.
    """

    folder: Path
    jobs: int | None = None
    patience: float = PATIENCE
    signals: list[int] = field(default_factory=list)  # that have come
    arrays: list[Array] = field(default_factory=list)
    gone: dict[Task, float] = field(default_factory=dict)  # since when the queue lacks it
    cancelled: set[str] = field(default_factory=set)  # members; the next command submits them

    def __post_init__(self) -> None:
        """Raises UserError: there is no SLURM, or nothing to submit with."""
        missing = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"slurm: there is no {' and no '.join(missing)} here; start it on a machine of the "
                "cluster, or leave slurm=true out: the runs are on this machine then"
            )
        if not SUBMIT.exists():
            raise UserError(
                f"slurm: {Path.cwd()} has no {SUBMIT}; start it in a clone of the repository, "
                "which has launch/ (an installed package has not)"
            )
        self.folder = self.folder.absolute()

    @property
    def room(self) -> Path:
        return self.folder / JOBS

    def run(self, journal: Journal) -> int:
        """Until nothing is left, or a signal; returns the exit code. A signal leaves jobs alone.

        Raises:
            UserError: a job is refused.
            OSError: the folder cannot be written.
        """
        self.room.mkdir(exist_ok=True)
        pause = FIRST_PAUSE
        with noted_signals(self.signals):
            try:
                self._find()
                while not self.signals:
                    changed = self._collect(journal) + self._submit(journal)
                    pause = FIRST_PAUSE if changed else min(2 * pause, LAST_PAUSE)
                    if self.arrays:
                        self._sleep(pause)
                    elif not changed:
                        break
            finally:
                if self.arrays:
                    self._say_what_goes_on()
        if self.cancelled:
            names = ", ".join(sorted(self.cancelled))
            say(f"stopped or cancelled: {names}; the same command submits them again")
        return EXIT_STOPPED_BY_SIGNAL if self.signals or self.cancelled else EXIT_DONE

    def _find(self) -> None:
        """The arrays of earlier commands, and what SLURM has of them."""
        self.arrays = read_arrays(self.folder)
        with self._submitting():  # by a command that was killed: then until that has ended
            while (queue := ask(array.name for array in self.arrays)) is None:
                if self.signals:
                    return
                self._sleep(LAST_PAUSE)
        for array in list(self.arrays):
            array.job, there = queue.get(array.name, (array.job, set()))
            for index, task in list(array.tasks.items()):
                if index not in there and self._end(array, index, task) in ("stopped", "unbegun"):
                    self._drop(array, index)  # it is to be submitted again
        if self.arrays:
            say(f"waiting for {self._numbers()}, which an earlier command has submitted")

    def _collect(self, journal: Journal) -> int:
        """What has ended, into the ledger; returns how many."""
        queue = ask(array.name for array in self.arrays)
        if queue is None:
            return 0
        known = {(member.name, member.key): member for member in journal.known()}
        count = 0
        for array in list(self.arrays):
            there = queue.get(array.name, ("", set()))[1]
            for index, task in list(array.tasks.items()):
                end = self._end(array, index, task)
                if index in there or not self._is_certain(end, task):
                    continue
                member = known.get((task.name, task.key))
                if end in ("stopped", "unbegun"):
                    self.cancelled.add(task.name)
                elif member is not None and member in journal.open():
                    journal.enter(member, end, self._why(array, index, task))
                self._drop(array, index)
                count += 1
        return count

    def _submit(self, journal: Journal) -> int:
        """What can run and is in no array, as another one; returns how many."""
        there = {(task.name, task.key) for array in self.arrays for task in array.tasks.values()}
        left = [
            member
            for member in journal.open()
            if (member.name, member.key) not in there and member.name not in self.cancelled
        ]
        members = [member for member in left if not journal.enter_done(member)]
        if members and not self.signals:
            self._submit_array(members)
        return len(left)

    def _submit_array(self, members: Sequence[Member]) -> None:
        name = f"compare-{secrets.token_hex(4)}"
        tasks = {
            index: Task(each.name, each.key, next_launch(run_folder(self.folder, each)))
            for index, each in enumerate(members, start=1)
        }
        array = Array(name, None, tasks)
        lines = [sweep_line(command(self.folder, member)) for member in members]
        at_once = [] if self.jobs is None else ["--at-once", str(self.jobs)]
        with self._submitting() as lock:
            write_text(self.room / name, "\n".join(lines) + "\n")
            self._write(array)
            self.arrays.append(array)
            submitted = subprocess.run(
                [SUBMIT.absolute(), "--sweep", self.room / name, *at_once],
                env={**os.environ, "SWEEP_LOGS": str(self._logs(array))},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                pass_fds=[lock.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C comes to us, which waits for it
            )
            if submitted.returncode:
                for index in list(tasks):
                    self._drop(array, index)
                raise UserError(
                    f"slurm: {SUBMIT} refuses {', '.join(member.name for member in members)}:",
                    *(said.removeprefix("error: ") for said in submitted.stderr.splitlines()),
                )
            array.job = submitted.stdout.strip().partition(";")[0]  # or JOB;CLUSTER
            self._write(array)
        say(f"job {array.job}: {', '.join(member.name for member in members)}")

    def _end(self, array: Array, index: int, task: Task) -> str:
        """How a task that SLURM has no more has ended, as `ending` says, or unbegun
        (its array was not submitted, or cancelled)."""
        run_dir = run_folder(self.folder, task)
        claimed = read_record(run_dir / ATTEMPT).get("launch", 0) >= task.launch
        if not claimed and self._log(array, index) is None:
            return "unbegun"
        return ending(run_dir, task.launch)

    def _is_certain(self, end: str, task: Task) -> bool:
        """Whether it is how the task has ended: what it wrote last may not be seen here yet."""
        since = self.gone.setdefault(task, time.monotonic())
        return end in ("done", "failed") or time.monotonic() - since >= self.patience

    def _why(self, array: Array, index: int, task: Task) -> str:
        """What is known of a task that died: the last line of the job's log, of the script's."""
        log = self._log(array, index) or self._logs(array)
        run_dir = run_folder(self.folder, task)
        return last_words(log) or f"it ended without a word; see {log} and {run_dir / 'logs'}"

    def _logs(self, array: Array) -> Path:
        return self.room / f"{array.name}.logs"

    def _log(self, array: Array, index: int) -> Path | None:
        """What SLURM keeps of the task's output; None: it has not begun."""
        return next(self._logs(array).glob(f"*/{index}.log"), None)

    def _drop(self, array: Array, index: int) -> None:
        self.gone.pop(array.tasks.pop(index), None)
        self._write(array)
        if not array.tasks:
            self.arrays.remove(array)

    def _write(self, array: Array) -> None:
        path = self.room / f"{array.name}.json"
        if array.tasks:
            write_json(path, asdict(array))
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _submitting(self) -> Iterator[IO[str]]:
        """With nobody else submitting. What is submitted inherits the lock, and so holds it when
        this process is killed."""
        with (self.room / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.signals and time.monotonic() < until:
            time.sleep(0.2)

    def _numbers(self) -> str:
        return ", ".join(f"job {array.job or array.name}" for array in self.arrays)

    def _say_what_goes_on(self) -> None:
        why = f"{signal.Signals(self.signals[0]).name}: " if self.signals else ""
        say(
            f"{why}this ends, not what it has submitted ({self._numbers()}): the same command "
            "waits for it again, scancel ends it"
        )


def read_arrays(folder: Path) -> list[Array]:
    """Those that the comparison's folder has. Raises UserError if a file of them is damaged."""
    arrays = []
    for path in sorted((folder / JOBS).glob("*.json")):
        try:
            said: dict[str, Any] = read_json(path)
            tasks = {int(index): Task(**task) for index, task in said["tasks"].items()}
            arrays.append(Array(said["name"], said["job"], tasks))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); see `squeue --name={path.stem}`: when nothing "
                "of it is left there, remove the file"
            ) from error
    return arrays


def ask(names: Iterable[str]) -> Queue | None:
    """What SLURM has of the arrays, waiting or running; None, if it does not answer."""
    names = list(names)
    if not names:
        return {}
    try:
        said = subprocess.run(
            ["squeue", "--noheader", "--array", f"--name={','.join(names)}", "--format=%j %F %K"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"squeue does not answer: {error}")
        return None
    if said.returncode:
        say(f"squeue does not answer: {said.stderr.strip()}")
        return None
    queue: Queue = {}
    for line in said.stdout.splitlines():
        name, job, index = line.split()
        queue.setdefault(name, (job, set()))[1].add(int(index))
    return queue


def sweep_line(words: Sequence[str]) -> str:
    """A run's overrides as a line of a sweep. Raises UserError for what has no place in one."""
    for word in words:
        if "\n" in word:
            raise UserError(f"override `{word}`: a line of a sweep cannot hold a line's end")
    return shlex.join(words)
