"""Token shards on disk: two .npy files for each, and one manifest for the folder.

    tokens     uint16 or uint32, the ids of the documents in a row, each ending with eos
    documents  uint64, n_documents + 1 boundaries: document i is tokens[b[i] : b[i + 1]]

Nothing here imports torch: the processes that write shards do not need it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cola_train.errors import UserError
from cola_train.files import read_json, temporary_name

FORMAT = 1  # raise it when folders written before can no longer be read, or would differ
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class ArrayFile:
    """A one-dimensional .npy file: its length, its size on disk, sha256 of the array's bytes."""

    name: str
    items: int
    size: int
    sha256: str

    def problem(self, folder: Path) -> str | None:
        """Why the file cannot be the one that was written, judged by its size; None if it can."""
        try:
            size = (folder / self.name).stat().st_size
        except OSError as error:
            return error.strerror or "unreadable"
        return None if size == self.size else f"{size} bytes instead of {self.size}"


@dataclass(frozen=True)
class Shard:
    tokens: ArrayFile
    documents: ArrayFile
    bytes_of_text: int  # UTF-8, before tokenising

    @property
    def files(self) -> tuple[ArrayFile, ArrayFile]:
        return self.tokens, self.documents

    @property
    def n_tokens(self) -> int:
        return self.tokens.items

    @property
    def n_documents(self) -> int:
        return self.documents.items - 1

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Shard":
        """Of values in which `wrong` finds nothing."""
        return cls(
            ArrayFile(*(values["tokens"][name] for name in FILE_SHAPE)),
            ArrayFile(*(values["documents"][name] for name in FILE_SHAPE)),
            values["bytes_of_text"],
        )


# What is read of the JSON in a folder.
FILE_SHAPE = {"name": str, "items": int, "size": int, "sha256": str}
SHARD_SHAPE = {"tokens": FILE_SHAPE, "documents": FILE_SHAPE, "bytes_of_text": int}
SPLIT_SHAPE = {"fingerprint": str, "bytes_of_text": int, "shards": [SHARD_SHAPE]}
MANIFEST_SHAPE = {
    "tokenizer": {"sha256": str},
    "vocab_size": int,
    "eos_id": int,
    "splits": {"train": SPLIT_SHAPE, "validation": SPLIT_SHAPE},
}


def wrong(values: Any, shape: Any, path: str = "") -> list[str]:
    """Where JSON has not the shape of an example with types in place of values."""
    if isinstance(shape, dict) and isinstance(values, dict):
        names = [(name, f"{path}.{name}".lstrip(".")) for name in shape]
        missing = [f"{inner} is missing" for name, inner in names if name not in values]
        there = [(values[name], shape[name], inner) for name, inner in names if name in values]
        return missing + [problem for each in there for problem in wrong(*each)]
    if isinstance(shape, list) and isinstance(values, list):
        return [p for i, value in enumerate(values) for p in wrong(value, shape[0], f"{path}[{i}]")]
    if type(values) is shape:
        return []
    words = {int: "a whole number", str: "text", dict: "an object", list: "a list"}
    kind = shape if isinstance(shape, type) else type(shape)
    return [f"{path or 'all'} is {json.dumps(values)}, not {words[kind]}"]


class ArrayWriter:
    """A one-dimensional .npy file written in pieces, under a temporary name until it is whole."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path, self._dtype = path, dtype
        self._temporary = temporary_name(path)
        self._file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115, closed by finish
        self._items = 0
        self._digest = hashlib.sha256()
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, dtype=self._dtype)
        self._file.write(data.data)
        self._digest.update(data.data)
        self._items += data.size

    def finish(self) -> ArrayFile:
        """Flush to disk and give the file its name."""
        size = self._file.tell()
        self._file.seek(0)
        self._write_header()  # numpy leaves room in the header for the length to grow
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        return ArrayFile(self._path.name, self._items, size, self._digest.hexdigest())

    def abandon(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._items,),
            },
        )


class ShardWriter:
    """Writes one shard, document by document."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, eos_id: int) -> None:
        self._tokens = ArrayWriter(folder / f"{name}.tokens.npy", dtype)
        self._documents = ArrayWriter(folder / f"{name}.documents.npy", np.dtype("<u8"))
        self._documents.append(np.zeros(1))
        self._eos = np.array([eos_id], dtype=dtype)
        self._end = 0
        self._bytes_of_text = 0

    def add(self, documents: list[np.ndarray], bytes_of_text: int) -> None:
        """Append documents (ids without eos), `bytes_of_text` long together."""
        pieces = [piece for ids in documents for piece in (ids, self._eos)]
        lengths = np.array([ids.size + 1 for ids in documents], dtype=np.uint64)
        ends = np.uint64(self._end) + np.cumsum(lengths, dtype=np.uint64)
        self._tokens.append(np.concatenate(pieces).astype(self._eos.dtype, copy=False))
        self._documents.append(ends)
        self._end = int(ends[-1])
        self._bytes_of_text += bytes_of_text

    def finish(self) -> Shard:
        return Shard(self._tokens.finish(), self._documents.finish(), self._bytes_of_text)

    def abandon(self) -> None:
        self._tokens.abandon()
        self._documents.abandon()


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def fingerprint(tokenizer_sha256: str, eos_id: int, shards: list[Shard]) -> str:
    """A hash of a split's content: equal ones mean equal tokens."""
    checksums = [file.sha256 for shard in shards for file in shard.files]
    content = json.dumps([tokenizer_sha256, eos_id, checksums])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        UserError: the file is missing, damaged, or of another version.
    """
    path = folder / MANIFEST
    fix = "run cola-prepare again, or name the folder that it printed (data.path)"
    try:
        manifest = read_json(path)
        version = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a readable manifest ({error}): {fix}") from error
    if version != FORMAT:
        raise UserError(f"{path}: format {version}, this version reads format {FORMAT}: {fix}")
    if problems := wrong(manifest, MANIFEST_SHAPE):
        raise UserError(*(f"{path}: {problem}: {fix}" for problem in problems))
    for split, values in manifest["splits"].items():
        shards = [Shard.from_json(shard) for shard in values["shards"]]
        made_of = manifest["tokenizer"]["sha256"], manifest["eos_id"], shards
        if fingerprint(*made_of) != values["fingerprint"]:
            raise UserError(f"{path}: splits.{split}.fingerprint is not that of its shards: {fix}")
    return dict(manifest)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written is the user's to fix: say which folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache_dir: cannot write {error.filename or folder} ({error.strerror}): make "
            "room or set data.cache_dir to a folder that can be written; finished shards are kept"
        ) from error
