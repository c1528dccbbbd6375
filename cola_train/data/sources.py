"""Where text comes from: each source lists its files and reads the documents of one file.

To add a source: its options in `options.SOURCES`, its functions in `READERS`. `files` is cheap
(it lists, it does not read) and reports every mistake in the configuration as a `UserError`.
"""

import contextlib
import glob
import gzip
import itertools
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cola_train.data.options import (
    SOURCES,
    C4Options,
    CorpusOptions,
    DataOptions,
    StdlibOptions,
    TextOptions,
    TokensOptions,
)
from cola_train.errors import UserError

if TYPE_CHECKING:
    import pyarrow

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class InputFile:
    """One file of text.

    name: identifies the file wherever the corpus lies (it decides the validation split).
    location: what to open: a path, or an hf:// address.
    split: the split of all its documents; None divides them by `data.validation_fraction`.
    size, modified_ns: bytes on disk and time of change; part of the cache's key.
    """

    name: str
    location: str
    split: Split | None
    size: int
    modified_ns: int = 0


@dataclass(frozen=True)
class Source:
    """files(data): the input in a fixed order. documents(file, text_field): its texts in order.

    folder: only for a source that is prepared already: where its shards are.
    """

    files: Callable[[Any], list[InputFile]]
    documents: Callable[[InputFile, str], Iterator[str]]
    folder: Callable[[Any], Path] | None = None


def _local_file(path: Path, root: Path, split: Split | None) -> InputFile:
    status = path.stat()
    name = path.relative_to(root).as_posix()
    return InputFile(name, str(path), split, status.st_size, status.st_mtime_ns)


def _fraction_problems(data: CorpusOptions) -> list[str]:
    if 0 < data.validation_fraction < 1:
        return []
    return [
        f"data.validation_fraction={data.validation_fraction}: must lie between 0 and 1, both "
        "excluded"
    ]


# --- stdlib: the source of Python's own standard library -----------------------------------


def _stdlib_files(data: StdlibOptions) -> list[InputFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - {"site-packages", "dist-packages", "__pycache__"}
        # _sysconfigdata is written when the interpreter is built and names that machine's folders.
        sources = (n for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
        paths += [Path(folder, name) for name in sources]
    files = [_local_file(path, root, None) for path in sorted(paths) if path.is_file()]
    problems = _fraction_problems(data)
    if not files:
        problems.append(
            f"data.source=stdlib: {root} holds no .py files (a Python without its library's "
            "source): use data=text data.files=[...]"
        )
    if problems:
        raise UserError(*problems)
    return files[: data.max_files]


def _stdlib_documents(file: InputFile, text_field: str) -> Iterator[str]:
    # A few of its tests are in other encodings on purpose; those are left out.
    with contextlib.suppress(UnicodeDecodeError):
        yield Path(file.location).read_bytes().decode("utf-8")


# --- text: the user's own files ------------------------------------------------------------

TEXT_ENDINGS = (".txt", ".txt.gz")
PARQUET_ENDINGS = (".parquet",)
JSON_ENDINGS = tuple(
    kind + compression
    for kind in (".jsonl", ".json", ".ndjson")
    for compression in ("", ".gz", ".zst", ".xz", ".bz2")
)

# A longer .txt file is read as consecutive documents of about this many characters, cut at line
# ends: it need not fit in memory, and a corpus of one file still has a validation split.
TEXT_DOCUMENT_CHARACTERS = 1 << 15


def _matches(field: str, pattern: str, split: Split | None) -> list[InputFile]:
    expanded = Path(pattern).expanduser()
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts)
    root = Path(*fixed)
    if root == expanded:
        root = expanded.parent
    paths = [Path(p) for p in glob.glob(str(expanded), recursive=True)]
    if not paths and expanded.exists():  # the name itself holds a character of the glob language
        paths, root = [expanded], expanded.parent
    found = sorted(path for path in paths if path.is_file())
    if not found:
        raise UserError(f"{field}: no file matches {pattern!r}: correct the path or the pattern")
    known = TEXT_ENDINGS + PARQUET_ENDINGS + JSON_ENDINGS
    unknown = [path for path in found if not path.name.endswith(known)]
    if unknown:
        raise UserError(
            f"{field}: {unknown[0]}: unknown kind of file: use .txt, .jsonl or .json (also "
            "compressed: .gz, .zst, .xz, .bz2) or .parquet, or narrow the pattern"
        )
    return [_local_file(path, root, split) for path in found]


def _text_files(data: TextOptions) -> list[InputFile]:
    problems: list[str] = []

    def expand(field: str, patterns: list[str], split: Split | None) -> dict[str, InputFile]:
        files: dict[str, InputFile] = {}
        for pattern in patterns:
            try:
                files |= {file.location: file for file in _matches(field, pattern, split)}
            except UserError as error:
                problems.extend(error.problems)
        return files

    if not data.files:
        problems.append("data.files: empty: name the training files, data.files=['corpus/*.jsonl']")
    train_split: Split | None = "train" if data.validation_files else None
    train = expand("data.files", list(data.files), train_split)
    validation = expand("data.validation_files", list(data.validation_files), "validation")
    if shared := sorted(train.keys() & validation.keys()):
        problems.append(
            f"data.validation_files: {shared[0]} is in data.files too ({len(shared)} such files): "
            "keep the two apart"
        )
    if not data.validation_files:
        problems += _fraction_problems(data)
    if problems:
        raise UserError(*problems)
    return [*list(train.values())[: data.max_files], *validation.values()]


def _text_documents(file: InputFile, text_field: str) -> Iterator[str]:
    if file.location.endswith(TEXT_ENDINGS):
        return _plain_documents(file.location)
    if file.location.endswith(PARQUET_ENDINGS):
        return _parquet_documents(file.location, text_field)
    return _json_documents(file.location, text_field)


def _plain_documents(path: str) -> Iterator[str]:
    # Not through `datasets`: its set-up costs more than reading one of thousands of small files.
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as stream:
        while text := stream.read(TEXT_DOCUMENT_CHARACTERS):
            yield text + stream.readline()


def _tables(builder: str, location: str) -> Iterator["pyarrow.Table"]:
    """The rows of one file, through `datasets`: local or on the hub, compressed or not."""
    import datasets  # a second to import, needed only while preparing

    # Or it contacts a server to count each file read, which an air-gapped machine waits for.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    path = location if "://" in location else glob.escape(location)
    stream = datasets.load_dataset(builder, data_files={"all": [path]}, split="all", streaming=True)
    try:
        yield from stream.with_format("arrow").iter(batch_size=1000)
    except RuntimeError as error:  # how `datasets` reports a file without a row
        if not isinstance(error.__cause__, StopIteration):
            raise


def _json_documents(location: str, text_field: str) -> Iterator[str]:
    # By line, not with the `json` builder: it wants the same columns and types in every row,
    # which corpora with free-form metadata do not have.
    number = 0
    for table in _tables("text", location):
        for line in table.column("text").to_pylist():
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{location}: line {number} is not JSON ({error}): it must hold one JSON "
                    "object a line; repair the line or remove the file"
                ) from None
            if not isinstance(row, dict) or text_field not in row:
                fields = list(row) if isinstance(row, dict) else []
                raise _missing_field(location, text_field, fields, f" in line {number}")
            yield from _checked(row[text_field], location, text_field)


def _parquet_documents(location: str, text_field: str) -> Iterator[str]:
    for table in _tables("parquet", location):
        if text_field not in table.column_names:
            raise _missing_field(location, text_field, table.column_names, "")
        for text in table.column(text_field).to_pylist():
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


# --- c4: allenai/c4, from the hub or a local copy -------------------------------------------

C4_HUB = "hf://datasets/allenai/c4/en"
C4_HUB_FILES: dict[Split, int] = {"train": 1024, "validation": 8}
C4_HUB_FILE_BYTES = 320_000_000  # about; only decides that each file makes a shard of its own


def _c4_files(data: C4Options) -> list[InputFile]:
    files: dict[Split, list[InputFile]] = {}
    problems = []
    for split in SPLITS:
        if data.path is None:
            count = C4_HUB_FILES[split]
            names = [f"c4-{split}.{i:05d}-of-{count:05d}.json.gz" for i in range(count)]
            files[split] = [
                InputFile(name, f"{C4_HUB}/{name}", split, C4_HUB_FILE_BYTES) for name in names
            ]
        else:
            root = Path(data.path).expanduser()
            pattern = f"c4-{split}.*.json.gz"
            files[split] = [_local_file(p, root, split) for p in sorted(root.glob(pattern))]
            if not files[split]:
                problems.append(
                    f"data.path={data.path}: no file {pattern} there: name the folder that holds "
                    "C4's en files, or leave data.path empty to read the hub"
                )
    if problems:
        raise UserError(*problems)
    return [*files["train"][: data.max_files], *files["validation"]]


# --- tokens: what cola-prepare wrote --------------------------------------------------------


def _tokens_folder(data: TokensOptions) -> Path:
    fix = "name the folder that cola-prepare printed"
    folder = Path(data.path).expanduser()
    if not (folder / "manifest.json").is_file():
        raise UserError(f"data.path={data.path}: no manifest.json there: {fix}")
    return folder


def _no_files(data: DataOptions) -> list[InputFile]:
    return []


READERS: dict[type[DataOptions], Source] = {
    StdlibOptions: Source(_stdlib_files, _stdlib_documents),
    TextOptions: Source(_text_files, _text_documents),
    C4Options: Source(_c4_files, _text_documents),
    TokensOptions: Source(_no_files, _text_documents, _tokens_folder),
}


def read_documents(source: str, file: InputFile, text_field: str) -> Iterator[str]:
    """The documents of one file. Whatever goes wrong in reading is a UserError that names it."""
    fix = "replace the file, or leave it out"
    if "://" in file.location:
        fix = "check the network, or give a local copy: data.path=FOLDER"
    try:
        yield from READERS[SOURCES[source]].documents(file, text_field)
    except (UserError, GeneratorExit, MemoryError):
        raise
    except Exception as error:  # each format and each network library has errors of its own
        raise UserError(
            f"{file.location}: cannot be read ({type(error).__name__}: {error}): {fix}"
        ) from error
