"""A comparison as Markdown: the tables of the page, without its pictures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cola_train.compare import sentences
from cola_train.compare.columns import Column, costs, differing, results

Summary = Mapping[str, Any]


def markdown(summary: Summary) -> str:
    """The whole file."""
    return "\n".join(_lines(summary)).rstrip() + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    yield f"# {sentences.title(summary)}\n"
    for _, words in sentences.findings(summary):
        yield f"- {_plain(words)}"
    yield ""
    yield " ".join(map(_plain, sentences.design(summary))) + "\n"
    yield from _table(*_of_arms(summary, results(summary)))
    failed = list(sentences.failures(summary))
    if failed:
        yield "Runs that failed:\n"
        yield from (f"- {_plain(each)}" for each in failed)
        yield ""
    yield "## What each arm is, computes and stores\n"
    yield from _table(*_of_arms(summary, costs()))
    heading, rows = differing(summary)
    if rows:
        yield "## Settings that differ\n"
        yield from _table(heading, rows)
    yield "## How to read this\n"
    yield from (f"- **{name}**: {words}" for name, words in sentences.meanings(summary))
    yield ""
    yield " ".join(sentences.origin(summary))
    yield " ".join(sentences.again())


def _of_arms(summary: Summary, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    rows = [[column.cell(arm) for column in columns] for arm in summary["arms"]]
    return [column.heading for column in columns], rows


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for i, row in enumerate([heading, *rows]):
        yield "| " + " | ".join(map(_plain, row)) + " |"
        if i == 0:
            yield "|---" + "|---:" * (len(heading) - 1) + "|"
    yield ""


def _plain(text: str) -> str:
    """On one line, and in one cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
