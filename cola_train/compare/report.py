"""The report of a comparison, made from its plan and ledger alone: a page, a table, and JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cola_train.compare.markdown import markdown
from cola_train.compare.page import html
from cola_train.compare.summary import summary
from cola_train.files import write_json, write_text

JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"  # in a comparison's folder


def write_report(folder: Path, plan: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """The three files, each whole or not at all; the same bytes from the same plan and lines.

    plan: as comparison.yaml has it. lines: of the ledger, those of the plan's members.

    Raises:
        OSError: the folder cannot be written.
    """
    found = summary(plan, lines)
    write_json(folder / JSON, found)
    write_text(folder / MARKDOWN, markdown(found))
    write_text(folder / PAGE, html(found))
