"""The documents of one file of text: .txt, JSON lines or Parquet, on a disk or on the hub.

A byte order mark is no text; all else is taken as it is, line ends too.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO

from cola_train.errors import UserError


def _open_zstd(file: IO[bytes]) -> Any:
    import pyarrow

    return pyarrow.input_stream(file, compression="zstd")  # all its frames; one cut short raises


DECOMPRESS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


def compressed(*endings: str) -> tuple[str, ...]:
    """The endings themselves, and with each compression behind them."""
    return tuple(ending + behind for ending in endings for behind in ("", *DECOMPRESS))


TEXT_ENDINGS = compressed(".txt")
JSON_ENDINGS = compressed(".jsonl", ".json", ".ndjson")
PARQUET_ENDINGS = (".parquet",)

# A longer .txt file is read as consecutive documents of about this many characters, cut at line
# ends: it need not fit in memory, and a corpus of one file still has a validation split.
TEXT_DOCUMENT_CHARACTERS = 1 << 15
PARQUET_ROWS = 1000  # read at a time


def file_documents(location: str, text_field: str) -> Iterator[str]:
    """The documents in a file, which is of the kind that its name says; null is none. What is no
    JSON and no Parquet is plain text: other endings were asked for.

    Raises:
        UserError: a line that is no JSON object; no text in `text_field`.
        Exception: of the format, the disk or the network, where the file cannot be read.
    """
    if location.endswith(JSON_ENDINGS):
        return _json_documents(location, text_field)
    if location.endswith(PARQUET_ENDINGS):
        return _parquet_documents(location, text_field)
    return _plain_documents(location)


def _bytes(location: str) -> Any:
    if "://" in location:
        from huggingface_hub import HfFileSystem

        return HfFileSystem().open(location, "rb")
    return open(location, "rb")


@contextlib.contextmanager
def _open(location: str, newline: str) -> Iterator[TextIO]:
    """UTF-8 text, decompressed as the name says."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_bytes(location))
        for ending, decompress in DECOMPRESS.items():
            if location.endswith(ending):
                if not file.read(1):  # which the libraries take for an empty file, compressed
                    raise EOFError("0 bytes are no compressed file")
                file.seek(0)
                file = stack.enter_context(decompress(file))
        yield stack.enter_context(io.TextIOWrapper(file, "utf-8-sig", newline=newline))


def _plain_documents(location: str) -> Iterator[str]:
    with _open(location, newline="") as stream:
        while text := stream.read(TEXT_DOCUMENT_CHARACTERS):
            yield text + stream.readline()


def _json_documents(location: str, text_field: str) -> Iterator[str]:
    with _open(location, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            line = line.strip("\ufeff \t\r\n")  # marks inside: of files put one after another
            if not line:
                continue
            try:
                row, reason = json.loads(line), ""
            except json.JSONDecodeError as error:
                row, reason = None, f" ({error})"
            if not isinstance(row, dict):
                whole = ".[]" if line.startswith("[") else "."
                raise UserError(
                    f"{location}: line {number} is not a JSON object{reason}: one JSON object a "
                    f"line is read: repair the line, or write the file anew with jq -c '{whole}'"
                )
            if text_field not in row:
                raise _missing_field(location, text_field, list(row), f" in line {number}")
            yield from _checked(row[text_field], location, text_field)


def _parquet_documents(location: str, text_field: str) -> Iterator[str]:
    import pyarrow.parquet

    with _bytes(location) as stream, pyarrow.parquet.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise _missing_field(location, text_field, names, "")
        for batch in file.iter_batches(PARQUET_ROWS, columns=[text_field]):
            for text in batch.column(text_field).to_pylist():
                # Some writers do not mark their text as such.
                text = text.decode() if isinstance(text, bytes) else text
                yield from _checked(text, location, text_field)


def _missing_field(location: str, text_field: str, fields: list[str], where: str) -> UserError:
    there = f"fields there: {', '.join(fields)}" if fields else "there are no fields"
    return UserError(f"{location}: no field {text_field!r}{where} ({there}): set data.text_field")


def _checked(text: object, location: str, text_field: str) -> Iterator[str]:
    """The text; nothing for null; a UserError for anything else."""
    if isinstance(text, str):
        yield text
    elif text is not None:
        raise UserError(
            f"{location}: field {text_field!r} holds {type(text).__name__}, not text: "
            "set data.text_field"
        )
