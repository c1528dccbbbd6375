"""A run as a terminal shows it: the essentials, read again as it grows."""

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from cola_train.errors import UserError
from cola_train.run.metrics import METRICS, Line, MetricsFollower, by_layer, warnings_of
from cola_train.run.outlook import Outlook, outlook

RECENT = 200  # lines by which the outlook tells how long the rest takes
WARNINGS = 3  # of health, the newest ones


class Watched:
    """The run in `folder`. Reading it again costs what has been added since.

    losses: of all training lines. training, validation, health: the newest line of each kind,
    empty before there is one. best: the lowest validation loss. warnings: the newest of health,
    each as `step N: text`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.follower = MetricsFollower(folder / METRICS)
        self._forget()

    def _forget(self) -> None:
        self.losses = array("d")
        self.recent: deque[Line] = deque(maxlen=RECENT)
        self.training: Line = {}
        self.validation: Line = {}
        self.health: Line = {}
        self.best = math.inf
        self.warnings: deque[str] = deque(maxlen=WARNINGS)

    def read(self) -> Outlook:
        """Take in what is new; how the run stands.

        Raises:
            UserError: its metrics cannot be read.
        """
        try:
            anew, lines = self.follower.read()
        except OSError as error:
            path = self.folder / METRICS
            raise UserError(f"run_dir: {path} cannot be read ({error.strerror})") from error
        if anew:
            self._forget()
        for line in lines:
            self._add(line)
        return outlook(self.folder, list(self.recent))

    def _add(self, line: Line) -> None:
        self.recent.append(line)
        if isinstance(line.get("health"), dict):
            self.health = line
            self.warnings.extend(warnings_of(line))
        elif "loss" in line:
            self.training = line
            if is_number(line["loss"]):
                self.losses.append(line["loss"])
        elif "val_loss" in line:
            self.validation = line
            if is_number(line["val_loss"]):
                self.best = min(self.best, line["val_loss"])


def is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def extreme(
    health: Mapping[str, Any], figure: str, choose: Callable[[Iterable[Any]], Any]
) -> tuple[float, str] | None:
    """The value that `choose` (min or max) picks of a figure of health over projections and layers,
    and where that is, as `block 3 down`; None where there is none."""
    found = [
        (value, f"block {layer} {projection}".rstrip())
        for _, projection, layers in by_layer({figure: health.get(figure)})
        for layer, value in enumerate(layers)
        if is_number(value)
    ]
    return choose(found) if found else None


def bars(values: "array[float]", width: int, rows: int, levels: str) -> list[str]:
    """A plot of `rows` lines of at most `width` characters: means of as many parts of `values`, on
    a logarithmic axis from the lowest mean up.

    What is above all means after the first tenth is cut off: a loss begins so high that the rest
    would look flat. levels: characters, from an empty one to a full one.
    """
    means = _means(values, width)
    if not means:
        return []
    low = math.log(min(means))
    high = math.log(max(means[len(means) // 10 :]))
    full = len(levels) - 1
    scale = (rows * full - 1) / (high - low) if high > low else 0.0
    heights = [1 + round(min(math.log(mean) - low, high - low) * scale) for mean in means]
    return [
        "".join(levels[max(0, min(full, height - row * full))] for height in heights)
        for row in reversed(range(rows))
    ]


def _means(values: "array[float]", parts: int) -> list[float]:
    """Of at most `parts` parts of nearly equal length; of what is above 0."""
    parts = min(parts, len(values))
    edges = [len(values) * i // parts for i in range(parts + 1)] if parts else [0]
    groups = [values[a:b] for a, b in pairwise(edges)]
    means = [math.fsum(group) / len(group) for group in groups]
    return [mean for mean in means if mean > 0]
