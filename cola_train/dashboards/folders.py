"""Which folders are runs."""

from collections.abc import Sequence
from pathlib import Path

from cola_train.errors import UserError
from cola_train.run.metrics import METRICS
from cola_train.run.status import STATUS


def found_runs(folders: Sequence[str]) -> list[Path]:
    """The runs that are in `folders`: each one itself, or those directly inside it.

    Raises:
        UserError: there is none.
    """
    problems, runs = [], []
    for name in folders:
        folder = Path(name)
        inside = [folder] if is_run(folder) else []
        if folder.is_dir() and not inside:
            inside = sorted(each for each in folder.iterdir() if is_run(each))
        if not inside:
            what = "no run, nor a folder of runs" if folder.is_dir() else "no such folder"
            problems.append(f"run_dir: {folder}: {what}")
        runs += inside
    if problems:
        raise UserError(*problems)
    return list(dict.fromkeys(runs))


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (METRICS, STATUS))
