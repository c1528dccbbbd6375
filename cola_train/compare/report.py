"""The report of a comparison, of its plan and its ledger alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cola_train.files import write_json


def write_report(folder: Path, plan: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Into the folder. Raises OSError if it cannot be written."""
    write_json(folder / "report.json", {"plan": plan, "runs": list(lines)})
