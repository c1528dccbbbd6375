"""`cola-prepare list` and `cola-prepare clean`: the prepared folders, and removing some of them."""

import argparse
import sys
from pathlib import Path

from cola_train.data.cache import Entry, entries, remove
from cola_train.data.options import default_cache_dir
from cola_train.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

COMMANDS = ("list", "clean")
CACHE_DIR = "data.cache_dir="
HEADER = ("folder", "state", "size", "last used", "tokens", "documents", "tokenizer", "made of")


def main(words: list[str]) -> int:
    """words: of the command line, the command first. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"cola-prepare {words[0]}", allow_abbrev=False)
    takes = ("FOLDER", f"or {CACHE_DIR}PATH, another cache")
    metavar, meaning = takes if words[0] == "clean" else (f"{CACHE_DIR}PATH", "another cache")
    parser.add_argument("folders", nargs="*", metavar=metavar, help=meaning)
    if words[0] == "clean":
        parser.description = (
            "Remove prepared folders: those that are named, or else the incomplete ones, with "
            "--older-than also those not used since. One that is being prepared or in use stays."
        )
        parser.add_argument("--older-than", type=float, metavar="DAYS", help="not used for so long")
        parser.add_argument("--yes", action="store_true", help="remove; else only show")
    options = parser.parse_intermixed_args(words[1:])
    given = [word for word in options.folders if word.startswith(CACHE_DIR)]
    names = [word for word in options.folders if word not in given]
    cache_dir = Path(given[-1].removeprefix(CACHE_DIR) if given else default_cache_dir())
    cache_dir = cache_dir.expanduser()
    try:
        found = entries(cache_dir)
        if words[0] == "list":
            if names:
                raise UserError(f"{names[0]}: list takes {CACHE_DIR}PATH alone")
            show(found, f"in {cache_dir}")
        else:
            clean(chosen(found, names, options.older_than), options.yes)
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


def chosen(found: list[Entry], names: list[str], older_than: float | None) -> list[Entry]:
    """What is to be removed.

    Raises:
        UserError: a name is not there, or both are given.
    """
    if names and older_than is not None:
        raise UserError("--older-than: has no effect on folders that are named; give one of them")
    if names:
        spelt = {e.folder.name: e for e in found} | {str(e.folder.resolve()): e for e in found}
        named = [name if name in spelt else str(Path(name).resolve()) for name in names]
        unknown = [name for name, path in zip(names, named, strict=True) if path not in spelt]
        if unknown:
            raise UserError(*(f"{n}: not in the cache: see cola-prepare list" for n in unknown))
        return [spelt[path] for path in dict.fromkeys(named)]
    limit = float("inf") if older_than is None else older_than
    return [entry for entry in found if entry.state == "incomplete" or entry.days >= limit]


def clean(entries: list[Entry], yes: bool) -> None:
    """Show what would be removed; with `yes`, remove it."""
    free = [entry for entry in entries if entry.state in ("complete", "incomplete")]
    show(free, "to remove")
    for entry in entries:
        if entry not in free:
            print(f"{entry.folder.name} stays: {entry.state}")
    if not yes:
        if free:
            print("Nothing is removed yet: add --yes")
        return
    for entry in free:
        stays = remove(entry.folder)
        print(f"{entry.folder.name} {f'stays: {stays}' if stays else 'removed'}")


def show(entries: list[Entry], where: str) -> None:
    """A table, and its sum."""
    rows = [HEADER, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
    for row in rows if entries else []:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())
    folders = f"{len(entries)} folder{'' if len(entries) == 1 else 's'}"
    print(f"{folders}, {_size(sum(entry.size for entry in entries))} {where}")


def _row(entry: Entry) -> tuple[str, ...]:
    made_of = [entry.source, *(f"{name}={value}" for name, value in entry.options.items())]
    return (
        entry.folder.name,
        entry.state,
        _size(entry.size),
        "today" if entry.days < 1 else f"{entry.days:.0f} days ago",
        " + ".join(f"{n:,}" for n in entry.n_tokens),
        " + ".join(f"{n:,}" for n in entry.n_documents),
        entry.tokenizer,
        " ".join(made_of),
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
