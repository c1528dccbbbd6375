"""A dataset of the Hugging Face hub: which of its files are a split of a configuration.

The hub keeps a copy of most datasets as Parquet, in a branch of its own. Where that has not all of
a split, or a revision is asked for, the repository's own files are taken: as its card says
(`configs`), or by the split's name in theirs. Files are addressed by the commit, which is looked up
once in a process.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cola_train.config.fields import unknown
from cola_train.data.formats import JSON_ENDINGS, PARQUET_ENDINGS, TEXT_ENDINGS
from cola_train.data.inputs import InputFile, Split, apart, fraction_problems
from cola_train.data.options import HfOptions
from cola_train.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, RepoFile

    Files = dict[str, dict[str, list[RepoFile]]]  # configuration -> split -> files

CONVERTED = "refs/convert/parquet"  # <configuration>/<split>/0000.parquet; partial-<split>: a part
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
LOCAL = "without a network, copy its files here: data=text data.files=[FOLDER]"


@dataclass(frozen=True)
class Listing:
    """One commit of a dataset. name: with its owner's."""

    name: str
    commit: str
    files: "Files"


def files(data: HfOptions) -> list[InputFile]:
    """The dataset's files, in the order of their names.

    Raises:
        UserError: there is no such dataset, configuration or split; the hub cannot be reached.
    """
    problems = [] if data.validation_split else fraction_problems(data.validation_fraction)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.name):
        problems.append(f"data.name={data.name}: must be a name on the hub, as Salesforce/wikitext")
    if problems:
        raise UserError(*problems)
    listing, config = _look_up(data)

    def of(split: str, use: Split | None) -> list[InputFile]:
        address = f"hf://datasets/{listing.name}@{listing.commit}"
        return [
            InputFile(
                file.path,
                f"{address}/{file.path}",
                use,
                file.size,
                version=file.lfs.sha256 if file.lfs else file.blob_id,
            )
            for file in sorted(listing.files[config][split], key=lambda file: file.path)
        ]

    if data.validation_split is None:
        return apart("data.split", of(data.split, None), [], data.max_files)
    validation = of(data.validation_split, "validation")
    return apart("data.validation_split", of(data.split, "train"), validation, data.max_files)


def notes(data: HfOptions) -> list[str]:
    """Which commit is read."""
    listing, config = _look_up(data)
    count = len(listing.files[config][data.split])
    of = f"configuration {config}, commit {listing.commit}"
    return [f"data.name={data.name}: {count} files of split {data.split}, {of}"]


def _look_up(data: HfOptions) -> tuple[Listing, str]:
    """A commit that has the splits, and its configuration."""
    wanted = {"data.split": data.split}
    if data.validation_split is not None:
        wanted["data.validation_split"] = data.validation_split
    converted = _converted(data.name) if data.revision is None else None
    if converted is None:
        own = _own(data.name, data.revision)
        config = _config(own, data.config)
        if problems := _missing(own, config, wanted):
            raise UserError(*problems)
        return own, config
    config = _config(converted, data.config)
    if problems := _missing(converted, config, wanted):
        own = _own(data.name, None)
        if config not in own.files or _missing(own, config, wanted):
            raise UserError(*problems)
        return own, config
    return converted, config


def _config(listing: Listing, config: str | None) -> str:
    there = sorted(listing.files)
    if config is not None and config not in there:
        raise UserError(unknown(config, there, f"data.config: {listing.name}: configuration"))
    if config is None and len(there) == 1:
        return there[0]
    if config is None and "default" not in there:
        has = f"has the configurations {', '.join(there)}: name one" if there else "has no file"
        raise UserError(f"data.config: {listing.name} {has}; {LOCAL}")
    return config or "default"


def _missing(listing: Listing, config: str, wanted: dict[str, str]) -> list[str]:
    there = listing.files[config]
    missing = [
        f"{field}={split}: {listing.name} ({config}) has no such split, but {', '.join(there)}"
        for field, split in wanted.items()
        if not there.get(split)
    ]
    endings = TEXT_ENDINGS + JSON_ENDINGS + PARQUET_ENDINGS
    return missing or [
        f"data.name={listing.name}: {file.path}: a kind of file that is not read: convert it and "
        "use data=text"
        for split in wanted.values()
        for file in there[split][:1]
        if not file.path.endswith(endings)
    ]


@functools.cache
def _converted(name: str) -> Listing | None:
    found = _repository(name, CONVERTED)
    if found is None:
        return None
    info, repo_files = found
    files: Files = {}
    for file in repo_files:
        folders = file.path.split("/")
        if len(folders) == 3 and file.path.endswith(PARQUET_ENDINGS):
            files.setdefault(folders[0], {}).setdefault(folders[1], []).append(file)
    return Listing(info.id, str(info.sha), files) if files else None


@functools.cache
def _own(name: str, revision: str | None) -> Listing:
    found = _repository(name, revision)
    if found is None:
        raise UserError(f"data.revision={revision}: {name} has no such branch, tag or commit")
    info, repo_files = found
    card = info.card_data.get("configs") if info.card_data else None
    files = _by_card(card, repo_files) if card else {"default": _by_words(repo_files)}
    return Listing(info.id, str(info.sha), files)


def _repository(name: str, revision: str | None) -> "tuple[DatasetInfo, list[RepoFile]] | None":
    """What the hub says of a revision, and all files there; None where there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        info = api.dataset_info(name, revision=revision)
        tree = api.list_repo_tree(info.id, recursive=True, revision=info.sha, repo_type="dataset")
        return info, [entry for entry in tree if isinstance(entry, RepoFile)]
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError as error:
        raise UserError(
            f"data.name={name}: no such dataset on the hub, or one that needs a login "
            "(hf auth login): correct the name"
        ) from error
    except Exception as error:  # the hub's, and those of the HTTP client
        reason = str(error).strip().splitlines() or [""]
        raise UserError(
            f"data.name={name}: the hub cannot be read ({type(error).__name__}: {reason[0]}): "
            f"check the network; {LOCAL}"
        ) from error


def _by_card(configs: list[dict[str, Any]], repo_files: "list[RepoFile]") -> "Files":
    """As the dataset's card says: data_files are patterns, for one split or for each."""
    found: Files = {}
    for config in configs:
        folder = config.get("data_dir", "").strip("./")
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in repo_files if file.path.startswith(prefix)]
        given = config.get("data_files")
        splits = found.setdefault(config.get("config_name", "default"), {})
        if not given:
            splits.update(_by_words(inside))
            continue
        if isinstance(given, str) or all(isinstance(each, str) for each in given):
            given = [{"split": "train", "path": given}]
        for each in given:
            paths = [each["path"]] if isinstance(each["path"], str) else each["path"]
            fits = _fits(f"{prefix}{path}" for path in paths)
            splits[each["split"]] = [file for file in inside if fits(file.path)]
    return found


def _by_words(repo_files: "list[RepoFile]") -> "dict[str, list[RepoFile]]":
    """By the words in their paths; of one kind, and all for training where no word is a split's."""
    of_kinds = [
        [file for file in repo_files if file.path.endswith(endings)]
        for endings in (PARQUET_ENDINGS, JSON_ENDINGS, TEXT_ENDINGS)
    ]
    of_kind = next(filter(None, of_kinds), [])
    found = {}
    for split, names in SPLIT_WORDS.items():
        named = [f for f in of_kind if {*re.split(r"[^a-z]+", f.path.lower())} & {*names}]
        if named:
            found[split] = named
    return found or {"train": of_kind}


def _fits(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is of one of these patterns, in which `**` goes into folders."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def expression(pattern: str) -> str:
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        return "".join(words.get(part, re.escape(part)) for part in parts)

    whole = re.compile("|".join(map(expression, patterns)))
    return lambda path: whole.fullmatch(path) is not None
