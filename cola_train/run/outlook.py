"""What a run's folder says of a run to those who look at it from outside: whether it runs, hangs,
is lost or done, how far it is and how long it will take. Imports no torch."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cola_train.run.metrics import METRICS, Line
from cola_train.run.recorded import read_recorded
from cola_train.run.status import ATTEMPT, LATEST, STATUS, read_record

RUNNING, HUNG, LOST, DONE, UNKNOWN = "running", "hung", "lost", "done", "unknown"

# A run that writes nothing for longer may hang. Its own watchdog is stricter and knows more, but
# a validation, which advances, writes a line only when it ends.
PATIENCE = 600.0  # seconds, at least ...
HANGS = 2.0  # ... or so many times train.hang_seconds ...
INTERVALS = 20.0  # ... or the time between two lines

RECENT = 100  # training lines whose mean time a step tells how long the rest takes


@dataclass(frozen=True)
class Outlook:
    """A run as it stands.

    state: running, hung, lost or done; stopped (by a signal, saved: it goes on when started again)
    or failed, as it said itself; unknown (nothing says that it began).
    why: what there is to know of the state, for people; may be empty.
    step, last_step: how far it is, and where it ends; last_step is None where no config says so.
    seconds_left: of training, by the time of recent steps; without validations and checkpoints.
        None where it is not known, or the run is not running.
    starts: how often it was started, the first one included.
    silent_seconds: since it wrote last; None where it wrote nothing.
    """

    state: str
    why: str
    step: int
    last_step: int | None
    seconds_left: float | None
    starts: int
    silent_seconds: float | None


def outlook(run_dir: Path, lines: Sequence[Line], now: float | None = None) -> Outlook:
    """Of the run in `run_dir`.

    lines: of its metrics.jsonl, the last of them at least. now: seconds since 1970; None: now.
    """
    now = time.time() if now is None else now
    status, attempt = read_record(run_dir / STATUS), read_record(run_dir / ATTEMPT)
    train = _training_options(run_dir)
    step = lines[-1]["step"] if lines else status.get("step", 0)
    last = _last_step(train)
    step_seconds = _step_seconds(lines)
    silent = _silent_seconds(run_dir, now)
    state, why = status.get("state", UNKNOWN), status.get("message", "")
    if state == UNKNOWN:
        why = f"{run_dir} has no {STATUS}: nothing has run here"
    if state == RUNNING:
        patience = _patience(train, step_seconds)
        began = _modified(run_dir / ATTEMPT) or 0.0
        trains = (_modified(run_dir / METRICS) or 0.0) >= began
        state, why = _of_running(status, began, silent or 0.0, patience, trains)
    left = None
    if state == RUNNING and last is not None and step_seconds is not None:
        left = max(0, last - step) * step_seconds
    return Outlook(state, why, step, last, left, attempt.get("attempt", 0), silent)


def _of_running(
    status: Mapping[str, Any], began: float, silent: float, patience: float, trains: bool
) -> tuple[str, str]:
    """State and why of a run that has not said that it ended.

    began: when this start of it did. trains: it has begun to train.
    """
    host, process = status.get("host", ""), status.get("pid", 0)
    alive = is_alive(host, process, began)
    if alive is False:
        return LOST, f"process {process} is gone without a word; the same command goes on"
    if not trains and (alive or silent <= patience):
        return RUNNING, "no step yet: data, model or compilation"
    if silent <= patience:
        return RUNNING, ""
    quiet = f"nothing was written for {duration(silent)}"
    if alive:
        return HUNG, f"{quiet}, but process {process} is there"
    return LOST, f"{quiet} by process {process} on {host}, which cannot be asked from here"


def is_alive(host: str, process: int, began: float) -> bool | None:
    """Whether a process on `host`, which was there when it was `began`, is there now; None: another
    machine's. began: seconds since 1970."""
    if host != socket.gethostname() or process <= 0:
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, but there
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime")
        )
        if fields[0] == "Z":  # it has ended, and its parent has not asked for its exit code
            return False
        # numbers are used again, after a reboot most of all
        return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK") <= began + 5.0
    except (OSError, ValueError, IndexError, StopIteration):
        return True  # no Linux


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _training_options(run_dir: Path) -> Mapping[str, Any]:
    """Those that the run has recorded; empty where it has not, or not yet."""
    try:
        options = read_recorded(run_dir / "config.yaml").get("train")
    except (OSError, ValueError):
        options = None
    return options if isinstance(options, dict) else {}


def _last_step(train: Mapping[str, Any]) -> int | None:
    ends = [train.get(name) for name in ("steps", "stop_after")]
    return min((end for end in ends if isinstance(end, int)), default=None)


def _step_seconds(lines: Sequence[Line]) -> float | None:
    """The mean time of recent steps."""
    times = [line["step_seconds"] for line in lines[-2 * RECENT :] if line.get("step_seconds")]
    return fmean(times[-RECENT:]) if times else None


def _patience(train: Mapping[str, Any], step_seconds: float | None) -> float:
    interval = (step_seconds or 0.0) * (train.get("log_every") or 1)
    return max(PATIENCE, HANGS * (train.get("hang_seconds") or 0.0), INTERVALS * interval)


def _silent_seconds(run_dir: Path, now: float) -> float | None:
    times = [_modified(run_dir / name) for name in (METRICS, STATUS, ATTEMPT, LATEST)]
    newest = max((at for at in times if at is not None), default=None)
    return None if newest is None else max(0.0, now - newest)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
