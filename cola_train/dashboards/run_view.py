"""A run as the page shows it: everything that its folder says, read again as it grows."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cola_train import costs
from cola_train.config.schema import Config
from cola_train.dashboards.health import health_maps, spectra
from cola_train.dashboards.lines import Lines, Numbers, bucketed, events, measured
from cola_train.errors import UserError
from cola_train.run.metrics import METRICS, Line, MetricsFollower
from cola_train.run.outlook import outlook
from cola_train.run.recorded import read_recorded, recorded_config

CONFIG = "config.yaml"  # in a run's folder
RECENT = 400  # lines by which the outlook tells how fast a run is
LAST = 20  # training lines whose mean is the loss or the speed of a run now

Values = Mapping[str, Any]


class RunView:
    """The run in `folder`. Reading it again costs what has been added since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.follower = MetricsFollower(folder / METRICS)
        self.lines = Lines()
        self.recent: deque[Line] = deque(maxlen=RECENT)
        self.settings: Values = {}

    def read(self, points: int) -> dict[str, Any]:
        """What the page knows of the run, as JSON values; curves have at most `points` points.

        Raises:
            UserError: its metrics or its state cannot be read.
        """
        problems: list[str] = []
        self._follow()
        columns = self.lines.columns()
        self.settings, config = self._settings(problems)
        try:
            shown_spectra = spectra(self.folder)
        except (OSError, ValueError) as error:
            problems.append(f"spectra: damaged ({error})")
            shown_spectra = None
        view: dict[str, Any] = {
            "name": self.folder.absolute().name,
            "folder": str(self.folder),
            "outlook": self._outlook(),
            "summary": summary(columns, self.lines.validation),
            "problems": problems,
            "training": bucketed(columns, points),
            "measured": measured(self.lines.validation, columns),
            "events": events(columns),
            "health": health_maps(self.lines.health, columns),
            "spectra": shown_spectra,
            "flops_per_token": None,
            "parameters": None,
        }
        if config is not None:
            view["flops_per_token"] = costs.training_flops_per_token(config)
            view["parameters"] = costs.parameters(config)
        return view

    def _outlook(self) -> dict[str, Any]:
        """Without what is another at every look, though nothing has happened."""
        try:
            found = asdict(outlook(self.folder, list(self.recent)))
        except OSError as error:
            raise UserError(
                f"run_dir: {error.filename} cannot be read ({error.strerror})"
            ) from error
        del found["silent_seconds"]
        return found

    def _follow(self) -> None:
        try:
            anew, lines = self.follower.read()
        except OSError as error:
            raise UserError(
                f"run_dir: {self.folder / METRICS} cannot be read ({error.strerror})"
            ) from error
        if anew:
            self.lines.clear()
            self.recent.clear()
        self.lines.add(lines)
        self.recent.extend(lines)

    def _settings(self, problems: list[str]) -> tuple[Values, Config | None]:
        """The options that the run has recorded, and the config if this version can read it."""
        try:
            values = read_recorded(self.folder / CONFIG)
        except FileNotFoundError:
            problems.append(f"no {CONFIG}: settings and FLOPs are not known")
            return {}, None
        except (OSError, ValueError) as error:
            problems.append(f"{CONFIG}: damaged ({error}); settings and FLOPs are not known")
            return {}, None
        try:
            return flat(values), recorded_config(values)
        except UserError as error:
            problems.append(f"{CONFIG} is another version's, so FLOPs are not known: {error}")
            return flat(values), None


def summary(columns: Mapping[str, Numbers], validation: Sequence[Line]) -> dict[str, float | None]:
    """Where a run is by its last lines: what a table of runs compares."""
    found: dict[str, float | None] = {}
    for name in ("loss", "tokens_per_second", "mfu"):
        values = columns.get(name, ())
        last = [float(v) for v in values[-LAST:] if math.isfinite(v)]
        found[name] = math.fsum(last) / len(last) if last else None
    for name in ("tokens", "seconds", "skipped", "peak_memory_bytes"):
        known = [float(v) for v in columns.get(name, ()) if math.isfinite(v)]
        found[name] = max(known) if known else None
    losses = [line["val_loss"] for line in validation if line.get("val_loss") is not None]
    found["val_loss"] = losses[-1] if losses else None
    found["best_val_loss"] = min(losses) if losses else None
    return found


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of nested options; lists are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{name}.") if nested else {name: value}
    return found


OF_EACH = ("run_name", "run_dir")  # differ always, and say nothing


def differing(all_settings: Sequence[Values]) -> dict[str, Any]:
    """The options that not all runs with settings share: name and each run's value as text ("": it
    has no such option); and how many they share."""
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    known = [settings for settings in all_settings if settings]
    rows, same = [], 0
    for name in names:
        if name in OF_EACH:
            continue
        if any(s.get(name, ...) != known[0].get(name, ...) for s in known):
            rows.append([name, *(shown(s[name]) if name in s else "" for s in all_settings)])
        else:
            same += 1
    return {"rows": rows, "same": same}


def shown(value: Any) -> str:
    """As a user types it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)
