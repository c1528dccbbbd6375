"""Small files that other processes read: written whole or not at all. Imports no torch."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"  # in the name of every file that is not whole yet


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process, on this machine or another, will choose."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.urandom(8).hex()}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path`, of a file to be written: it becomes `path` when the block ends, and is
    removed when that fails.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: readers see the old content or the new, even after a crash.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """The same, as JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, which becomes `path` when the block ends, and is removed when
    that fails. Folders above it are made. What the block writes is to be synced by it.

    Raises:
        FileExistsError: there is something at `path`.
        OSError: the folder cannot be written.
    """
    if os.path.lexists(path):
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = temporary_name(path.with_name(f".{path.name}"))
    try:
        hidden.mkdir()
        yield hidden
        sync_folder(hidden)
        hidden.rename(path)  # fails if there is a folder with files by now
        sync_folder(path.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make the names in `path` survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Raises:
    OSError: the file is not there, or cannot be read.
    ValueError: it is not JSON.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Raises ValueError if it is not JSON, or nested without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_yaml(path: Path) -> Any:
    """Raises:
    OSError: the file is not there, or cannot be read.
    ValueError: it is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"{where}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
