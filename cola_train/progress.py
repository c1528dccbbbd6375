"""What a program says while it works, on stderr: on a terminal a bar, with messages above it; in a
log a line with the time for each, and no control characters."""

import sys
import time
from types import TracebackType
from typing import Any


def _tqdm() -> Any:
    """Imported where something is said: benchmarks run where it is not installed."""
    from tqdm import tqdm

    return tqdm


def on_terminal() -> bool:
    return sys.stderr.isatty()


def say(message: str) -> None:
    """A line for people."""
    if not on_terminal():
        message = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}"
    _tqdm().write(message, file=sys.stderr)
    sys.stderr.flush()


class Bar:
    """How much of `total` is done: a bar on a terminal, and in a log a line now and then."""

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        unit: str = "",
        shown: bool = True,
        log_seconds: float = 30.0,
    ) -> None:
        """log_seconds: between two lines of a log."""
        self.name, self.total, self.done = name, total, done
        self.in_log = shown and not on_terminal()
        self.log_seconds, self.logged = log_seconds, time.monotonic()
        self.first: tuple[int, float] | None = None  # done, and when: what came before took long
        self.tqdm = _tqdm()(
            desc=name,
            total=total,
            initial=done,
            unit=unit or name,
            unit_scale=unit == "B",
            disable=not (shown and on_terminal()),
            miniters=0,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def show(self, done: int, note: str | None = None) -> None:
        """So much is done; `note`: what else there is to know, and a log says nothing without."""
        if note is not None:
            self.tqdm.set_postfix_str(note, refresh=False)
        self.tqdm.update(done - self.done)
        self.done = done
        now = time.monotonic()
        self.first = self.first or (done, now)
        due = done == self.total or now - self.logged >= self.log_seconds
        if self.in_log and note is not None and due:
            self.logged = now
            say(f"{self.name} {done}/{self.total}: {note}{self._left(now)}")

    def _left(self, now: float) -> str:
        assert self.first is not None
        done, then = self.first
        if not done < self.done < self.total:
            return ""
        seconds = (now - then) / (self.done - done) * (self.total - self.done)
        return f", {self.tqdm.format_interval(seconds)} left"

    def close(self) -> None:
        """Leave the bar as it is: what is printed from here on comes below it."""
        self.tqdm.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
