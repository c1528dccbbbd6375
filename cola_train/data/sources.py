"""Where text comes from: each source lists its files and reads the documents of one file.

To add a source: its options in `options.SOURCES`, its functions in `READERS`. `files` is cheap
(it lists, it does not read) and reports every mistake in the configuration as a `UserError`.
"""

import contextlib
import glob
import itertools
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cola_train.data import hub
from cola_train.data.formats import (
    DECOMPRESS,
    JSON_ENDINGS,
    PARQUET_ENDINGS,
    TEXT_ENDINGS,
    compressed,
    file_documents,
)
from cola_train.data.inputs import (
    SPLITS,
    InputFile,
    Split,
    apart,
    distinct,
    fraction_problems,
    local_file,
    unreadable,
)
from cola_train.data.options import (
    SOURCES,
    C4Options,
    DataOptions,
    HfOptions,
    StdlibOptions,
    TextOptions,
    TokensOptions,
)
from cola_train.errors import UserError


@dataclass(frozen=True)
class Source:
    """files(data): the input in a fixed order. documents(file, text_field): its texts in order.

    folder: only for a source that is prepared already: where its shards are.
    notes: what is said of the input, as what is left out.
    """

    files: Callable[[Any], list[InputFile]]
    documents: Callable[[InputFile, str], Iterator[str]]
    folder: Callable[[Any], Path] | None = None
    notes: Callable[[Any], list[str]] = lambda data: []


# --- stdlib: the source of Python's own standard library -----------------------------------


def _stdlib_files(data: StdlibOptions) -> list[InputFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - {"site-packages", "dist-packages", "__pycache__"}
        # _sysconfigdata is written when the interpreter is built and names that machine's folders.
        sources = (n for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
        paths += [Path(folder, name) for name in sources]
    found = [local_file(path, root, None) for path in sorted(paths) if path.is_file()]
    files = list(distinct(found).values())
    problems = fraction_problems(data.validation_fraction)
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


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """What a pattern, or all below a folder, names; and the folder that the names begin from."""
    expanded = Path(pattern)
    if expanded.is_dir():
        root, paths = expanded, _glob(Path(glob.escape(pattern), "**"))
    else:
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts)
        root = Path(*fixed)
        if root == expanded:
            root = expanded.parent
        paths = _glob(expanded)
        if not paths and os.path.lexists(expanded):  # its name holds a character of glob's language
            paths, root = [expanded], expanded.parent
    return root, sorted(p for p in paths if os.path.isfile(p) or not os.path.exists(p))


def _pattern_files(
    field: str, pattern: str, split: Split | None, endings: tuple[str, ...]
) -> list[InputFile]:
    root, found = _matches(pattern)
    known = [path for path in found if path.name.endswith(endings)]
    kinds = f".txt, .jsonl or .json (also compressed: {', '.join(DECOMPRESS)}) or .parquet"
    if os.path.isdir(pattern):
        if not known:
            raise UserError(
                f"{field}: {pattern} holds no {kinds} ({len(found)} of other kinds): name "
                "another folder; data.text_endings=[.md,.rst] reads such files as plain text"
            )
    elif not found:
        folders = glob.glob(pattern)
        fix = f"name the folder, as {folders[0]}" if folders else "correct the path or the pattern"
        raise UserError(f"{field}: no file matches {pattern!r}: {fix}")
    elif unknown := [path for path in found if path not in known]:
        kind = _kind(unknown[0])
        as_text = f"; data.text_endings=[{kind}] reads it as plain text" if kind else ""
        raise UserError(
            f"{field}: {unknown[0]}: unknown kind of file: use {kinds}, or narrow the "
            f"pattern{as_text}"
        )
    return [local_file(path, root, split) for path in known]


def _kind(path: Path) -> str:
    """Its ending, a compression's aside."""
    return Path(path.stem).suffix if path.suffix in DECOMPRESS else path.suffix


def _passed_over(data: TextOptions) -> list[str]:
    """Files of folders that are of no known kind, which a folder may hold."""
    notes, endings = [], _text_endings(data)
    for pattern in filter(os.path.isdir, [*data.files, *data.validation_files]):
        others = [p for p in _matches(pattern)[1] if not p.name.endswith(endings)]
        kinds = Counter(_kind(path) or "without an ending" for path in others)
        if kinds:
            files = "1 file" if len(others) == 1 else f"{len(others)} files"
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
            notes.append(
                f"{pattern}: {files} of other kinds passed over ({counts}); "
                "data.text_endings=[ENDINGS] reads those that are plain text"
            )
    return notes


def _text_endings(data: TextOptions) -> tuple[str, ...]:
    """Of all files that are read."""
    return (*TEXT_ENDINGS, *JSON_ENDINGS, *PARQUET_ENDINGS, *compressed(*data.text_endings))


def _ending_problems(data: TextOptions) -> list[str]:
    taken = (*JSON_ENDINGS, *PARQUET_ENDINGS, *DECOMPRESS)
    return [
        f"data.text_endings: {ending!r}: must be an ending of plain text, as .md is; compressed "
        "forms go with it"
        for ending in data.text_endings
        if not re.fullmatch(r"(\.[^./]+)+", ending) or ending.endswith(taken)
    ]


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
    problems = _ending_problems(data)
    endings = _text_endings(data)

    def expand(field: str, patterns: list[str], split: Split | None) -> list[InputFile]:
        files: list[InputFile] = []
        for pattern in patterns:
            try:
                files += _pattern_files(field, pattern, split, endings)
            except UserError as error:
                problems.extend(error.problems)
        return files

    train_split: Split | None = "train" if data.validation_files else None
    train = expand("data.files", list(data.files), train_split)
    validation = expand("data.validation_files", list(data.validation_files), "validation")
    if not data.validation_files:
        problems += fraction_problems(data.validation_fraction)
    try:
        files = apart("data.validation_files", train, validation, data.max_files)
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
            files[split] = [local_file(p, root, split) for p in sorted(root.glob(pattern))]
            if not files[split]:
                problems.append(
                    f"data.path={data.path}: no file {pattern} there: name the folder that holds "
                    "C4's en files, or leave data.path empty to read the hub"
                )
    if problems:
        raise UserError(*problems)
    return apart(f"data.path={data.path}", files["train"], files["validation"], data.max_files)


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
    TextOptions: Source(_text_files, _documents, notes=_passed_over),
    C4Options: Source(_c4_files, _documents),
    HfOptions: Source(hub.files, _documents, notes=hub.notes),
    TokensOptions: Source(_no_files, _documents, _tokens_folder),
}


def read_documents(source: str, file: InputFile, text_field: str) -> Iterator[str]:
    """The documents of one file. Whatever goes wrong in reading is a UserError that names it."""
    try:
        yield from READERS[SOURCES[source]].documents(file, text_field)
    except (UserError, GeneratorExit, MemoryError):
        raise
    except Exception as error:  # each format and each network library has errors of its own
        raise unreadable(file.location, error) from error
