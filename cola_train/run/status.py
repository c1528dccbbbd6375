"""How a run has ended, as it records it in its folder for launch scripts.

The scripts read `status.json` alone: torchrun exits with 1 whatever its workers' codes, and `srun`
can return 0 after a node failure. A script numbers each launch (`next_launch`), gives the number
to the trainer (`COLA_LAUNCH`) and afterwards asks `python -m cola_train.run.status RUN_DIR NUMBER`.

Nothing here imports torch: the answer must come quickly where a job is about to be killed.
"""

import sys
from pathlib import Path
from typing import Any

from cola_train.errors import EXIT_FAULT
from cola_train.files import read_json

ATTEMPT, STATUS = "attempt.json", "status.json"

# The step of the newest checkpoint that was saved: should that be gone, it is no fresh start.
LATEST = "latest.json"

LAUNCH_VARIABLE = "COLA_LAUNCH"

# What is read of both files, where it is there.
FIELDS: dict[str, type] = {
    "launch": int, "attempt": int, "token": str, "host": str, "pid": int, "state": str,
    "step": int, "message": str,
}  # fmt: skip


def next_launch(run_dir: Path) -> int:
    """The number of a launch that begins now: above those of all that have claimed the folder."""
    launch: int = read_record(run_dir / ATTEMPT).get("launch", 0)
    return launch + 1


def verdict(run_dir: Path, launch: int) -> tuple[str, int, str]:
    """How a launch ended, by status.json: its state, its exit code and its last words.

    State: done; stopped (by a signal, saved); hung; failed (starting again is no use); lost (by
    the failure of something else); unknown (it died without a word); superseded (the folder is a
    later launch's now).
    """
    if read_record(run_dir / ATTEMPT).get("launch", 0) > launch:
        return "superseded", EXIT_FAULT, f"{run_dir} is a later launch's now"
    status = read_record(run_dir / STATUS)
    if status.get("launch") != launch or status.get("state", "running") == "running":
        return "unknown", EXIT_FAULT, f"it ended without a word; see {run_dir / 'logs'}"
    return status["state"], status["exit_code"], status.get("message", "")


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if there is none, or, which is said, if it is damaged."""
    try:
        record = read_json(path)
        if not isinstance(record, dict):
            raise ValueError("it holds no record")
        for name, kind in FIELDS.items():
            if not isinstance(record.get(name, kind()), kind):
                raise ValueError(f"{name} is {record[name]!r}")
        ended = record.get("state", "running") != "running"
        if ended and not isinstance(record.get("exit_code"), int):
            raise ValueError("no exit code")
        return record
    except FileNotFoundError:
        return {}
    except ValueError as error:
        print(f"{path}: damaged ({error}); taken as missing", file=sys.stderr)
        return {}


def main() -> None:
    """Print the verdict on launch NUMBER of RUN_DIR, first a line with the state, and exit with
    its code."""
    state, exit_code, message = verdict(Path(sys.argv[1]), int(sys.argv[2]))
    print(state, message, sep="\n")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
