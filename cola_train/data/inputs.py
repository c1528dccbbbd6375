"""The files of a corpus: what each is called, which are one and the same, what they hold."""

import functools
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cola_train.errors import UserError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
CONTENT_PIECES = 5  # of a large file, hashed in place of the whole


@dataclass(frozen=True)
class InputFile:
    """One file of text.

    name: identifies the file wherever the corpus lies (it decides the validation split).
    location: what to open: a path, or an hf:// address.
    split: the split of all its documents; None divides them by `data.validation_fraction`.
    size, modified_ns: bytes on disk and time of change; part of the cache's key.
    version: of a file on the hub: what stands for its content in the cache's key.
    due: where its count towards the next document for validation begins, 0 to 1; None: where its
        name says. See `jobs.documents`.
    """

    name: str
    location: str
    split: Split | None
    size: int
    modified_ns: int = 0
    version: str = ""
    due: float | None = None

    def first_due(self) -> float:
        if self.due is not None:
            return self.due
        digest = hashlib.blake2b(self.name.encode("utf-8", "surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") / 2**64


def local_file(path: Path, root: Path, split: Split | None) -> InputFile:
    try:
        status = path.stat()
    except OSError as error:  # a link to nothing, say
        raise unreadable(str(path), error) from error
    name = path.relative_to(root).as_posix()
    return InputFile(name, str(path), split, status.st_size, status.st_mtime_ns)


def distinct(files: Iterable[InputFile]) -> dict[object, InputFile]:
    """Files by what they are, however they are spelt or linked: each once."""
    real_folder = functools.cache(os.path.realpath)

    def identity(location: str) -> object:
        if "://" in location:
            return location
        status = os.lstat(location)
        if stat.S_ISLNK(status.st_mode):
            location = os.path.realpath(location)
            status = os.stat(location)
        if status.st_nlink > 1:  # else not by inode: some file systems give two files the same
            return status.st_dev, status.st_ino
        folder, name = os.path.split(location)
        return os.path.join(real_folder(folder), name)

    found: dict[object, InputFile] = {}
    for file in files:
        found.setdefault(identity(file.location), file)
    return found


def apart(
    field: str, train: list[InputFile], validation: list[InputFile], max_files: int | None
) -> list[InputFile]:
    """Each file once, those for validation last.

    Raises:
        UserError: a file is in both.
    """
    of_train, of_validation = distinct(train), distinct(validation)
    if shared := [i for i in of_validation if i in of_train]:
        raise UserError(
            f"{field}: {of_validation[shared[0]].location} is a training file too (as "
            f"{of_train[shared[0]].location}; {len(shared)} such files): keep the two apart"
        )
    return [*list(of_train.values())[:max_files], *of_validation.values()]


def content_digest(file: InputFile, most: int) -> str:
    """A hash of a file's bytes; if they are more than `most`, of pieces of it from end to end.

    Raises:
        UserError: it cannot be read.
    """
    if "://" in file.location:
        return file.version  # the content itself is not worth the network's time
    pieces = 1 if file.size <= most else CONTENT_PIECES
    length = min(file.size, most) // pieces
    digest = hashlib.sha256()
    try:
        with open(file.location, "rb", buffering=0) as stream:
            for i in range(pieces):
                stream.seek((file.size - length) * i // max(1, pieces - 1))
                digest.update(stream.read(length))
    except OSError as error:
        raise unreadable(file.location, error) from error
    return digest.hexdigest()


def unreadable(location: str, error: Exception) -> UserError:
    fix = "replace the file, or leave it out"
    if "://" in location:
        fix = (
            "check the network, or give a local copy: data.path=FOLDER of C4, data=text "
            "data.files=[FOLDER] of others"
        )
    return UserError(f"{location}: cannot be read ({type(error).__name__}: {error}): {fix}")


def fraction_problems(fraction: float) -> list[str]:
    if 0 < fraction < 1:
        return []
    return [f"data.validation_fraction={fraction}: must lie between 0 and 1, both excluded"]
