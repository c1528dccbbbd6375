"""Health lines and spectra of a run, as heat maps and curves need them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cola_train.dashboards.lines import AXES, Numbers, at_steps, number, packed
from cola_train.files import read_json
from cola_train.run.metrics import Line, by_layer, warnings_of

COLUMNS = 160  # of a heat map, at most
WARNINGS = 20  # the newest
VALUES = 128  # of a spectrum, at most
BLOCK = "block"  # stands for the projection of a figure of whole blocks
SPECTRA = Path("spectra", "spectra.json")  # in a run's folder
POINTS = ("input", "output", "z", "s")  # where spectra are taken


def health_maps(lines: list[Line], columns: Mapping[str, Numbers]) -> dict[str, Any] | None:
    """By figure and projection (`block` for figures of whole blocks) the means of buckets of lines,
    layer by layer; None without lines."""
    by_name: dict[tuple[str, str], dict[int, list[float]]] = {}
    for i, line in enumerate(lines):
        for figure, projection, values in by_layer(line["health"]):
            known = [number(value) for value in values]
            by_name.setdefault((figure, projection or BLOCK), {})[i] = known
    if not by_name:
        return None
    layers = max(len(values) for rows in by_name.values() for values in rows.values())
    size = -(-len(lines) // COLUMNS)
    starts = np.arange(0, len(lines), size)
    figures: dict[str, dict[str, Any]] = {}
    for (figure, projection), rows in by_name.items():
        table = np.full((len(lines), layers), np.nan)
        for i, values in rows.items():
            table[i, : len(values)] = values
        finite = np.isfinite(table)
        count = np.add.reduceat(finite, starts, dtype=np.float64)
        total = np.add.reduceat(np.where(finite, table, 0.0), starts)
        mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
        figures.setdefault(figure, {})[projection] = packed(mean.T)  # layer by layer
    ends = np.minimum(starts + size, len(lines)) - 1
    axes = at_steps([lines[i]["step"] for i in ends], columns)
    return {
        "layers": layers,
        "columns": len(starts),
        "size": size,
        "axes": {axis: packed(axes[axis], "f8") for axis in AXES if axis in axes},
        "figures": figures,
        "warnings": [text for line in lines for text in warnings_of(line)][-WARNINGS:],
    }


def spectra(run_dir: Path) -> dict[str, Any] | None:
    """The page's part of spectra/spectra.json; None if there is none.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        content = read_json(run_dir / SPECTRA)
    except FileNotFoundError:
        return None
    try:
        linears = []
        for each in content["linears"]:
            linear = {key: each[key] for key in ("layer", "projection", "d_in", "d_out", "rank")}
            linear |= {point: _shortened(each[point]) for point in POINTS if each.get(point)}
            linears.append(linear)
        kept = ("source", "alpha", "tokens", "advice")
        return {key: content.get(key) for key in kept} | {"linears": linears}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no spectra in the form of cola-spectrum ({error!r})") from error


def _shortened(spectrum: dict[str, Any]) -> dict[str, Any]:
    """With at most VALUES values, and where they stand (0 the largest)."""
    values = np.array([number(value) for value in spectrum["values"]])
    # close together at the front, where a spectrum falls fastest
    at = np.unique((np.linspace(0, 1, VALUES) ** 2 * (len(values) - 1)).round().astype(int))
    at = np.arange(len(values)) if len(values) <= VALUES else at
    return {
        "width": spectrum["width"],
        "effective_rank": spectrum["effective_rank"],
        "at": packed(at),
        "values": packed(values[at]),
    }
