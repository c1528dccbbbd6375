"""What a service that shows a run's figures is to a run."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cola_train.progress import say


class Sink(Protocol):
    """A service, begun for a run."""

    def log(self, step: int, tokens: int | None, figures: Mapping[str, Any]) -> None:
        """figures: of a line of metrics.jsonl, by the names of `figures_of`. tokens: those trained
        on so far."""

    def sample(self, text: str) -> None:
        """What the trained model has written."""

    def roll_back(self, step: int) -> None:
        """The run goes on from `step` again: what was logged after it never happened."""

    def close(self, exit_code: int) -> None:
        """The run has ended with `exit_code`."""


class Guarded:
    """A sink whose failing, at start or later, is said once and never stops training."""

    def __init__(self, name: str, start: Callable[[], Sink]) -> None:
        self.name = name
        self.sink: Sink | None = None
        try:
            self.sink = start()
        except Exception as error:  # whatever it is, training matters more
            self._failed(error)

    def tell(self, call: Callable[[Sink], None]) -> None:
        """Make `call` on the sink, if it is on."""
        if self.sink is None:
            return
        try:
            call(self.sink)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        say(f"{self.name} failed and is off from here on; metrics.jsonl goes on: {error}")
        self.sink = None
