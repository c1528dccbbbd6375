"""The lines of a metrics.jsonl, sorted by what they are of, as columns and as few as a plot needs.

A long run has more lines than a screen has pixels. They are put into buckets of equally many, and
of each figure a bucket keeps mean, least and greatest value: a spike stays one.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cola_train.run.metrics import Line

Numbers = NDArray[np.float64]
AXES = ("step", "tokens", "seconds")  # what curves can be drawn over


class Lines:
    """All lines of a run so far: `training` as columns of equal length, the others as they are."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.rows = 0
        self.training: dict[str, list[float]] = {}
        self.validation: list[Line] = []
        self.health: list[Line] = []

    def add(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if "health" in line:
                self.health.append(line)
            elif "tokens" in line:
                self._add_row(line)
            else:
                self.validation.append(line)
        for column in self.training.values():
            column.extend([math.nan] * (self.rows - len(column)))

    def _add_row(self, line: Line) -> None:
        for name, value in line.items():
            if value is None or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            column = self.training.setdefault(name, [])
            column.extend([math.nan] * (self.rows - len(column)))
            column.append(float(value))
        self.rows += 1

    def columns(self) -> dict[str, Numbers]:
        """Of the training lines; `seconds` is how long the steps up to each took: those between
        two lines as long as the later one's, and nothing between the steps."""
        columns = {name: np.array(values) for name, values in self.training.items()}
        if columns:
            steps = np.diff(columns["step"], prepend=0.0)
            took = np.nan_to_num(columns.get("step_seconds", np.zeros(self.rows)))
            columns["seconds"] = np.cumsum(took * steps)
        return columns


def bucketed(columns: Mapping[str, Numbers], points: int) -> dict[str, Any]:
    """At most `points` buckets of the rows of `columns`, as the page reads them: an axis at each
    bucket's last row, of a figure `mean`, and where a bucket has several rows `min` and `max`."""
    rows = len(next(iter(columns.values()), ()))
    size = -(-rows // points) or 1
    starts = np.arange(0, rows, size)
    ends = np.minimum(starts + size, rows) - 1
    axes = {name: packed(columns[name][ends], "f8") for name in AXES if name in columns}
    figures = {}
    for name, values in columns.items():
        if name in AXES or np.isnan(values).all():
            continue
        if size == 1:
            figures[name] = {"mean": packed(values)}
            continue
        known = ~np.isnan(values)
        count = np.add.reduceat(known, starts, dtype=np.float64)
        total = np.add.reduceat(np.where(known, values, 0.0), starts)
        mean = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
        figures[name] = {
            "mean": packed(mean),
            "min": packed(np.fmin.reduceat(values, starts)),
            "max": packed(np.fmax.reduceat(values, starts)),
        }
    return {"rows": rows, "size": size, "axes": axes, "figures": figures}


def packed(values: Any, kind: str = "f4") -> dict[str, str]:
    """Little-endian floats in base64, which is shorter than digits; NaN: there is none."""
    with np.errstate(over="ignore"):  # inf in fp32 is as good as it gets
        array = np.asarray(values, dtype=f"<{kind}")
    return {kind: base64.b64encode(array.tobytes()).decode()}


def at_steps(steps: Iterable[int], columns: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """The axes at steps of other lines than the training's."""
    wanted = np.array(list(steps), dtype=np.float64)
    found = {"step": wanted}
    for name in AXES[1:]:
        if name in columns:
            found[name] = np.interp(wanted, columns["step"], columns[name])
    return found


def measured(lines: Iterable[Line], columns: Mapping[str, Numbers]) -> dict[str, Any]:
    """Validation losses and results of tasks: axes and figures by name."""
    lines = list(lines)
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    steps = [line["step"] for line in lines]
    figures: dict[str, Any] = {}
    for name in names:
        values = [number(line.get(name)) for line in lines]
        here = [i for i, value in enumerate(values) if not math.isnan(value)]
        if here:
            axes = at_steps([steps[i] for i in here], columns)
            figures[name] = {
                "axes": {axis: packed(each, "f8") for axis, each in axes.items()},
                "mean": packed([values[i] for i in here]),
            }
    return figures


def events(columns: Mapping[str, Numbers]) -> dict[str, dict[str, list[float]]]:
    """Where steps were skipped (at most 1000 places) and where later starts went on."""
    found = {}
    for name, first in (("skipped", 0.0), ("attempt", 1.0)):
        if name in columns:
            values = columns[name]
            known = np.flatnonzero(~np.isnan(values))
            rises = known[np.diff(values[known], prepend=first) > 0][:1000]
            found[name] = {axis: columns[axis][rises].tolist() for axis in AXES if axis in columns}
    return found


def number(value: Any) -> float:
    """NaN if it is none."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain else math.nan
