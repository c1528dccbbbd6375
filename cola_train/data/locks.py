"""Who works with a prepared folder: one process that writes it, or any number that read it.

Both are locks of the kernel's, so that none outlives its process. Where the file system has none,
unique names and renames keep writing correct, and `cola-prepare clean` removes nothing.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from cola_train.progress import say

WRITING = ".lock"  # locked by the one that writes
READING = ".in-use"  # shared by those that read; its time is that of the latest use
POLL_SECONDS = 0.2


@contextlib.contextmanager
def only_writer(folder: Path, keep_alive: Callable[[], None]) -> Iterator[bool]:
    """Make the folder, and wait until no other process prepares it, to spare the work of doing it
    twice. Gives whether it is locked.

    Raises:
        OSError: it cannot be written.
    """
    waits = 0
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / WRITING, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waits == 0:
                    say(f"Waiting: another process prepares {folder}")
                waits += 1
                keep_alive()
                time.sleep(POLL_SECONDS)
                continue
            except OSError:
                yield False
                return
            if _is_there(lock):  # else the folder was removed meanwhile
                yield True
                return


def reading(folder: Path) -> IO[str] | None:
    """Note that the folder is in use, until what is returned is closed; None where that cannot be
    noted, as on a disk that cannot be written."""
    lock: IO[str] | None = None
    with contextlib.suppress(OSError):
        lock = open(folder / READING, "a+")  # noqa: SIM115, open as long as it is used
        os.utime(lock.fileno())
        for _ in range(10):  # `cola-prepare list` holds it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_SECONDS / 4)
    return lock


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[str]:
    """With no other process in the folder, or else the word for what one does there.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        for name, word in ((WRITING, "being prepared"), (READING, "in use")):
            try:
                lock = stack.enter_context(open(folder / name, "r+"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:  # nobody has ever done so
                continue
            except BlockingIOError:
                yield word
                return
        yield ""


def _is_there(lock: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except FileNotFoundError:
        return False
