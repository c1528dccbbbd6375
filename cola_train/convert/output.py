"""The folder that the option `out` names, which a command writes whole or not at all."""

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cola_train.errors import UserError
from cola_train.files import whole_folder


@contextmanager
def new_folder(out: Path, needed: int) -> Iterator[Path]:
    """`files.whole_folder`, in which so many bytes have room.

    Raises:
        UserError: it is there already, or cannot be written.
    """
    try:
        _refuse_full_disk(out, needed)
        with whole_folder(out) as folder:
            yield folder
    except OSError as error:
        refuse_existing(out)
        raise UserError(
            f"out: {out} cannot be written ({error.strerror}); nothing is left of it. Free some "
            "space or make the folder above it writable, or choose another out"
        ) from None


def end_cleanly() -> None:
    """Make SIGTERM end this process as Ctrl-C does, so that nothing half-written stays."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def refuse_existing(out: Path) -> None:
    """Before the work: `new_folder` would refuse it too."""
    if os.path.lexists(out):
        raise UserError(f"out: {out} is there already; choose another, or remove it")


def _refuse_full_disk(out: Path, needed: int) -> None:
    above = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        why = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} free"
        raise OSError(errno.ENOSPC, why)
