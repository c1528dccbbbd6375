"""The prepared folders of a cache: what each is, and removing those that nobody needs."""

import contextlib
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cola_train.data.locks import READING, alone
from cola_train.data.options import SOURCES
from cola_train.data.preparation import is_complete
from cola_train.data.shards import MANIFEST, Shard, read_manifest
from cola_train.errors import UserError

DAY = 86_400.0


@dataclass(frozen=True)
class Entry:
    """A prepared folder. state: complete, incomplete, in use, being prepared; the last two are
    known where the file system has locks. days: since its latest use. n_tokens, n_documents: of
    training and validation."""

    folder: Path
    state: str
    size: int
    days: float
    source: str
    options: dict[str, Any]
    tokenizer: str = ""
    n_tokens: tuple[int, ...] = ()
    n_documents: tuple[int, ...] = ()


def entries(cache_dir: Path) -> list[Entry]:
    """Its prepared folders, known by their names, the latest used first.

    Raises:
        UserError: there is no such folder.
    """
    if not cache_dir.is_dir():
        raise UserError(f"data.cache_dir={cache_dir}: no such folder: give the one of the caches")
    names = re.compile(f"({'|'.join(SOURCES)})-[0-9a-f]{{12}}")
    folders = [f for f in cache_dir.iterdir() if names.fullmatch(f.name) and f.is_dir()]
    return sorted(map(_entry, folders), key=lambda entry: (entry.days, entry.folder.name))


def remove(folder: Path) -> str:
    """Remove a prepared folder, or return why it stays.

    Its manifest goes first, so that one removed in part is prepared again. Who has files of it
    mapped keeps their content; but shards are opened as they are needed, so it must be in nobody's
    use.
    """
    try:
        with alone(folder) as busy:
            if busy:
                return busy
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    return ""


def _entry(folder: Path) -> Entry:
    try:
        with alone(folder) as busy:
            pass
    except OSError:
        busy = ""
    source = folder.name.split("-")[0]
    files = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was temporary
            files[path.name] = path.stat()
    size = sum(status.st_size for status in files.values())
    used = [files[name] for name in (READING, MANIFEST) if name in files] or [*files.values()]
    days = (time.time() - max([status.st_mtime for status in used], default=0)) / DAY
    if not is_complete(folder):
        return Entry(folder, busy or "incomplete", size, days, source, {})
    manifest = read_manifest(folder)
    shards = [
        [Shard.from_json(shard) for shard in split["shards"]]
        for split in manifest["splits"].values()
    ]
    return Entry(
        folder,
        busy or "complete",
        size,
        days,
        source,
        dict(manifest.get("options", {})),
        str(manifest["tokenizer"].get("name", "")),
        tuple(sum(shard.n_tokens for shard in split) for split in shards),
        tuple(sum(shard.n_documents for shard in split) for split in shards),
    )
