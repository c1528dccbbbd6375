"""The folder of a run: whether a new run may begin in it, and the configuration it records."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.files import write_text


def refuse_to_mix_runs(config: Config) -> None:
    """Raises UserError if resume=never would mix two runs in one folder."""
    run_dir = Path(config.run_dir)
    if config.resume == "never" and any((run_dir / "checkpoints").glob("step-*")):
        raise UserError(
            f"resume: {run_dir} holds checkpoints of an earlier run, which resume=never would "
            "mix with this one; remove the folder, or choose another run_name"
        )


def record_config(config: Config) -> None:
    """Write the resolved config into the run's folder, and say what a resumed run changes.

    Raises UserError if it cannot be written.
    """
    if not distributed.is_main():
        return
    run_dir = Path(config.run_dir)
    values = dataclasses.asdict(config)
    path = run_dir / "config.yaml"
    try:
        if path.exists():
            for name, old, new in changes(yaml.safe_load(path.read_text()), values):
                print(f"changed since this run began: {name}: {old} -> {new}", file=sys.stderr)
        write_text(path, yaml.safe_dump(values, sort_keys=False))
    except OSError as error:
        raise UserError(f"run_dir: cannot write {run_dir}: {error.strerror}") from error


def changes(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of the options that differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    return [change for key in new for change in changes(old.get(key), new[key], f"{prefix}{key}.")]
