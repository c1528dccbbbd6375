"""The ledger of a comparison, `ledger.jsonl`: a line for each run that has ended, well or not.

One process writes it, which holds the folder's lock. Imports no torch.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cola_train.errors import UserError
from cola_train.files import parse_json

LEDGER, LOCK = "ledger.jsonl", ".lock"

Line = dict[str, Any]
NUMBER = (int, float)
FIELDS: dict[str, Any] = {
    "member": str, "key": str, "arm": str, "phase": str, "lr": (*NUMBER, type(None)), "seed": int,
    "state": str, "why": str, "words": list, "machine": str, "versions": dict, "date": str,
}  # fmt: skip
OF_DONE: dict[str, Any] = {  # what those that have ended well have too
    "steps": int, "tokens": int, "flops": NUMBER, "flops_per_token": NUMBER, "val_loss": NUMBER,
    "bits_per_byte": (*NUMBER, type(None)), "biased_batches": int, "curve": list,
    "seconds": NUMBER, "tokens_per_second": NUMBER, "parameters": int, "trained_parameters": int,
    "memory": dict, "peak_memory_bytes": NUMBER, "settings": dict,
}  # fmt: skip


def read_ledger(folder: Path) -> dict[str, Line]:
    """The lines by member; of several of one member, the last. What is damaged is left out, which
    is said on stderr.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / LEDGER
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    lines: dict[str, Line] = {}
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        try:
            line = parse_json(text)
            fields = FIELDS | (OF_DONE if line["state"] == "done" else {})
            if not all(isinstance(line[name], kind) for name, kind in fields.items()):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
            continue
        lines.pop(line["member"], None)  # the newest stands last
        lines[line["member"]] = line
    return lines


def append(folder: Path, line: Mapping[str, Any]) -> None:
    """Raises OSError if it cannot be written; a line cut short by that is left out when read."""
    path = folder / LEDGER
    with path.open("ab") as file:
        cut_short = file.tell() and not _ends_a_line(path)
        text = json.dumps(line, allow_nan=False)
        file.write(f"{chr(10) if cut_short else ''}{text}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps others out of it.

    Raises:
        UserError: another process works on the comparison, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"folder: another cola-compare works on {folder}; wait for it, or stop it"
            ) from error
        except OSError as error:
            raise UserError(
                f"folder: {folder} cannot be written or locked ({error.strerror}); choose another"
            ) from error
        yield
