"""Where text comes from: each source lists its files and reads the documents of one file.

To add a source: its options in `options.SOURCES`, its functions in `READERS`. `files` is cheap
(it lists, it does not read) and reports every mistake in the configuration as a `UserError`.
"""

import contextlib
import functools
import glob
import hashlib
import itertools
import os
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cola_train.data.formats import (
    DECOMPRESS,
    JSON_ENDINGS,
    PARQUET_ENDINGS,
    TEXT_ENDINGS,
    file_documents,
)
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
    try:
        status = path.stat()
    except OSError as error:  # a link to nothing, say
        raise _unreadable(str(path), error) from error
    name = path.relative_to(root).as_posix()
    return InputFile(name, str(path), split, status.st_size, status.st_mtime_ns)


def _distinct(files: Iterable[InputFile]) -> dict[object, InputFile]:
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


def _apart(
    field: str, train: list[InputFile], validation: list[InputFile], max_files: int | None
) -> list[InputFile]:
    """Each file once, those for validation last.

    Raises:
        UserError: a file is in both.
    """
    of_train, of_validation = _distinct(train), _distinct(validation)
    if shared := [i for i in of_validation if i in of_train]:
        raise UserError(
            f"{field}: {of_validation[shared[0]].location} is a training file too (as "
            f"{of_train[shared[0]].location}; {len(shared)} such files): keep the two apart"
        )
    return [*list(of_train.values())[:max_files], *of_validation.values()]


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
    found = [_local_file(path, root, None) for path in sorted(paths) if path.is_file()]
    files = list(_distinct(found).values())
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


def _matches(field: str, pattern: str, split: Split | None) -> list[InputFile]:
    expanded = Path(pattern)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts)
    root = Path(*fixed)
    if root == expanded:
        root = expanded.parent
    paths = _glob(expanded)
    if not paths and os.path.lexists(expanded):  # its name holds a character of glob's language
        paths, root = [expanded], expanded.parent
    found = sorted(path for path in paths if os.path.isfile(path) or not os.path.exists(path))
    if not found:
        raise UserError(f"{field}: no file matches {pattern!r}: correct the path or the pattern")
    known = TEXT_ENDINGS + PARQUET_ENDINGS + JSON_ENDINGS
    unknown = [path for path in found if not path.name.endswith(known)]
    if unknown:
        raise UserError(
            f"{field}: {unknown[0]}: unknown kind of file: use .txt, .jsonl or .json (also "
            f"compressed: {', '.join(DECOMPRESS)}) or .parquet, or narrow the pattern"
        )
    return [_local_file(path, root, split) for path in found]


def _glob(pattern: Path) -> list[Path]:
    """As `glob.glob`, but `**` goes into each folder once: links can form a circle."""
    if "**" not in pattern.parts:
        return [Path(path) for path in glob.glob(str(pattern))]
    at = pattern.parts.index("**")
    rest = pattern.parts[at + 1 :] or ("*",)
    folders = [f for top in glob.glob(str(Path(*pattern.parts[:at]))) for f in _folders(top)]
    return [path for f in folders for path in _glob(Path(glob.escape(f), *rest))]


def _folders(top: str) -> list[str]:
    """A folder and all those in it, by the way there that goes over the fewest links."""
    found: dict[str, str] = {}
    waiting = [top]
    for start in waiting:  # which grows meanwhile
        for folder, inner, _ in os.walk(start):
            real = os.path.realpath(folder)
            known = found.setdefault(real, folder) != folder
            inner[:] = [] if known else sorted(n for n in inner if not n.startswith("."))
            paths = [os.path.join(folder, name) for name in inner]
            waiting += [path for path in paths if os.path.islink(path)]
    return list(found.values())


def _text_files(data: TextOptions) -> list[InputFile]:
    problems: list[str] = []

    def expand(field: str, patterns: list[str], split: Split | None) -> list[InputFile]:
        files: list[InputFile] = []
        for pattern in patterns:
            try:
                files += _matches(field, pattern, split)
            except UserError as error:
                problems.extend(error.problems)
        return files

    if not data.files:
        problems.append("data.files: empty: name the training files, data.files=['corpus/*.jsonl']")
    train_split: Split | None = "train" if data.validation_files else None
    train = expand("data.files", list(data.files), train_split)
    validation = expand("data.validation_files", list(data.validation_files), "validation")
    if not data.validation_files:
        problems += _fraction_problems(data)
    try:
        files = _apart("data.validation_files", train, validation, data.max_files)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    return files


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
            root = Path(data.path)
            pattern = f"c4-{split}.*.json.gz"
            files[split] = [_local_file(p, root, split) for p in sorted(root.glob(pattern))]
            if not files[split]:
                problems.append(
                    f"data.path={data.path}: no file {pattern} there: name the folder that holds "
                    "C4's en files, or leave data.path empty to read the hub"
                )
    if problems:
        raise UserError(*problems)
    return _apart(f"data.path={data.path}", files["train"], files["validation"], data.max_files)


# --- tokens: what cola-prepare wrote --------------------------------------------------------


def _tokens_folder(data: TokensOptions) -> Path:
    fix = "name the folder that cola-prepare printed"
    folder = Path(data.path)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"data.path={data.path}: no manifest.json there: {fix}")
    return folder


def _no_files(data: DataOptions) -> list[InputFile]:
    return []


def _documents(file: InputFile, text_field: str) -> Iterator[str]:
    return file_documents(file.location, text_field)


READERS: dict[type[DataOptions], Source] = {
    StdlibOptions: Source(_stdlib_files, _stdlib_documents),
    TextOptions: Source(_text_files, _documents),
    C4Options: Source(_c4_files, _documents),
    TokensOptions: Source(_no_files, _documents, _tokens_folder),
}


def read_documents(source: str, file: InputFile, text_field: str) -> Iterator[str]:
    """The documents of one file. Whatever goes wrong in reading is a UserError that names it."""
    try:
        yield from READERS[SOURCES[source]].documents(file, text_field)
    except (UserError, GeneratorExit, MemoryError):
        raise
    except Exception as error:  # each format and each network library has errors of its own
        raise _unreadable(file.location, error) from error


def content_digest(file: InputFile, most: int) -> str:
    """A hash of a file's bytes; if they are more than `most`, of pieces of it from end to end.

    Raises:
        UserError: it cannot be read.
    """
    if "://" in file.location:
        return ""  # not worth the network's time: its names stand for what they hold
    pieces = 1 if file.size <= most else CONTENT_PIECES
    length = min(file.size, most) // pieces
    digest = hashlib.sha256()
    try:
        with open(file.location, "rb", buffering=0) as stream:
            for i in range(pieces):
                stream.seek((file.size - length) * i // max(1, pieces - 1))
                digest.update(stream.read(length))
    except OSError as error:
        raise _unreadable(file.location, error) from error
    return digest.hexdigest()


def _unreadable(location: str, error: Exception) -> UserError:
    fix = "replace the file, or leave it out"
    if "://" in location:
        fix = "check the network, or give a local copy: data.path=FOLDER"
    return UserError(f"{location}: cannot be read ({type(error).__name__}: {error}): {fix}")
