"""One HTML page of runs, whole in itself: style, script and data are in it, and its own content
security policy forbids it any address but the server that it came from."""

import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from cola_train.dashboards.run_view import RunView, differing
from cola_train.run.outlook import RUNNING

ASSETS = files("cola_train.dashboards") / "page"
# in this order: one script, of which each part uses those before it
SCRIPTS = (
    "values.js", "ticks.js", "drawing.js", "plot.js", "heat.js", "state.js", "runs.js", "curves.js",
    "health.js", "spectra.js", "settings.js", "main.js",
)  # fmt: skip


class Page:
    """The page of some runs. served: it asks `data.json` for what is new, every `refresh` seconds;
    one in a file loads itself again."""

    def __init__(self, runs: Sequence[Path], points: int, refresh: float | None, served: bool):
        self.views = [RunView(run) for run in runs]
        self.points, self.refresh, self.served = points, refresh, served

    def data(self) -> dict[str, Any]:
        """What the page shows, read anew, as JSON values.

        Raises:
            UserError: a run's metrics cannot be read.
        """
        runs = [view.read(self.points) for view in self.views]
        return {
            "made": time.time(),
            "refresh": self.refresh,
            "served": self.served,
            "runs": runs,
            "settings": differing([view.settings for view in self.views]),
        }

    def html(self, data: dict[str, Any]) -> str:
        """The page with `data` in it."""
        parts = {
            "CONNECT": "'self'" if self.served else "'none'",
            "STYLE": asset("style.css"),
            "DATA": as_script(data),
            "SCRIPT": "\n".join(["'use strict';", *map(asset, SCRIPTS)]),
        }
        page = asset("page.html")
        for name, text in parts.items():
            before, mark, after = page.partition(f"{{{{{name}}}}}")
            assert mark, name
            page = before + text + after
        return page


def goes_on(data: dict[str, Any]) -> bool:
    """Whether a run may still write."""
    return any(run["outlook"]["state"] == RUNNING for run in data["runs"])


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def as_json(data: Any) -> str:
    """Compact, and without NaN, which JavaScript does not read."""
    return json.dumps(without_nan(data), separators=(",", ":"), allow_nan=False)


def as_script(data: Any) -> str:
    """JSON that can stand in a page: no text of a run's folder ends the script element."""
    return as_json(data).replace("<", "\\u003c")


def without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) <= 1e308 else None  # NaN compares false
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value
