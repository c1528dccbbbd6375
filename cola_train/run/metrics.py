"""A run's metrics.jsonl, as its readers see it: at once, or line by line while the run writes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cola_train.files import parse_json

METRICS = "metrics.jsonl"  # in a run's folder

Line = dict[str, Any]


def parse_line(text: str) -> Line:
    """One line of the file.

    Raises:
        ValueError: it is damaged, cut short by a crash most often.
    """
    line = parse_json(text)
    try:
        if type(line["step"]) is int and type(line.get("tokens", 0)) is int:
            return dict(line)
    except (TypeError, KeyError, AttributeError):
        pass
    raise ValueError("no line of metrics")


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl. A damaged one is left out, which is said on stderr."""
    lines = []
    content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, text in enumerate(content.split("\n"), start=1):
        if not text:
            continue
        try:
            lines.append(parse_line(text))
        except ValueError:
            print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
    return lines


def by_layer(health: Any) -> Iterator[tuple[str, str, list[Any]]]:
    """(figure, projection, values by layer) of a line's figures of health; of whole blocks the
    projection is "". What has another form is left out."""
    for figure, values in health.items() if isinstance(health, dict) else ():
        parts = values if isinstance(values, dict) else {"": values}
        for projection, layers in parts.items():
            if isinstance(layers, list):
                yield str(figure), str(projection), layers


def warnings_of(line: Line) -> list[str]:
    """A health line's warnings, each as `step N: text`."""
    told = line.get("warnings")
    texts = told if isinstance(told, list) else []
    return [f"step {line['step']}: {str(text).removeprefix('warning: ')}" for text in texts]


class MetricsFollower:
    """Reads a metrics.jsonl that grows: each `read` costs what has been added since the last.

    A run that goes back to a checkpoint writes its file anew. The follower sees that by the file's
    identity, and keeps the old one open so that its number is not used again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.rest = b""  # of a line that was not whole yet

    def read(self) -> tuple[bool, list[Line]]:
        """Whether the file began anew, so that what was read before is void, and the whole lines
        that came since. There are none while there is no file. Damaged ones are left out.

        Raises:
            OSError: the file cannot be read.
        """
        anew = self._reopen()
        if self.file is None:
            return anew, []
        *whole, self.rest = (self.rest + self.file.read()).split(b"\n")
        lines = []
        for text in whole:
            try:
                lines.append(parse_line(text.decode("utf-8", errors="replace")))
            except ValueError:
                continue
        return anew, lines

    def _reopen(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if self.file is not None:
            known = os.fstat(self.file.fileno())
            same = there is not None and os.path.samestat(known, there)
            if same and known.st_size >= self.file.tell():
                return False
            self.file.close()
        anew = self.file is not None
        self.file = None if there is None else self.path.open("rb")
        self.rest = b""
        return anew

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
