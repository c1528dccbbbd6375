"""Stdout and stderr that may fail: what reads them has ended, the terminal or the disk is gone.

Whoever prints goes on; `| head`, a closed terminal or a full disk under the log is no reason to
lose a training. `printable`: what may be shown there.
"""

import os
import sys
from typing import Any, TextIO


class Console:
    """A stream in place of sys.stdout or sys.stderr. When it fails, `told` is told once, and what
    is written from then on is lost."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self.stream = stream or _nowhere()  # None: it was closed when Python began
        self.name = name
        self.told: Console | None = None
        self.failure: str | None = None

    def write(self, text: str) -> int:
        try:
            try:
                return self.stream.write(text)
            except UnicodeEncodeError:
                coding = self.stream.encoding
                return self.stream.write(text.encode(coding, "backslashreplace").decode(coding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _fail(self, error: Exception) -> None:
        self.failure = f"{self.name} failed ({error}); what is written there is lost from now on"
        nowhere = _nowhere()
        try:
            # The descriptor itself: libraries and child processes write there too, and what is
            # buffered would fail again at the end.
            os.dup2(nowhere.fileno(), self.stream.fileno())
        except (OSError, ValueError):
            self.stream = nowhere
        if self.told is not None:
            print(self.failure, file=self.told, flush=True)


def printable(text: str) -> str:
    """What a model has made up, without characters that a terminal or a log takes as commands."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def keep_going_without_console() -> None:
    """From here on a failure to print is no error."""
    if isinstance(sys.stderr, Console):
        return
    output, errors = Console(sys.stdout, "stdout"), Console(sys.stderr, "stderr")
    output.told, errors.told = errors, output
    sys.stdout, sys.stderr = output, errors


def console_failures() -> list[str]:
    """What has failed so far."""
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, Console)]
    return [each.failure for each in streams if each.failure is not None]
