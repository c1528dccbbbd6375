"""The figures of a line of metrics.jsonl by the names under which services group them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from cola_train.run.metrics import by_layer

# Whatever is not listed goes under perf/
GROUPS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "skipped": "train/skipped",
    "attempt": "train/attempt",
    "val_loss": "validation/loss",
    "val_perplexity": "validation/perplexity",
    "val_tokens": "validation/tokens",
    "val_bits_per_byte": "validation/bits_per_byte",
}
HEALTH = "health"  # the key of a line's figures by layer


def figures_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and None for one that is not known. Without step and tokens, and what is neither;
    those by layer as `grouped` says."""
    figures = {
        _name(key): value
        for key, value in line.items()
        if key not in ("step", "tokens") and (value is None or isinstance(value, int | float))
    }
    return {**figures, **grouped(line.get(HEALTH) or {})}


def grouped(health: Mapping[str, Any]) -> dict[str, float]:
    """`health/FIGURE/PROJECTION/min`, `.../median` and `.../max` over layers.

    health: figure -> projection -> a number for each layer, None where there is none; figures of
        whole blocks have a list at once, and no PROJECTION. Numbers that are not finite are left
        out, as None is; so is what has no number in any layer.
    """
    return {
        "/".join(filter(None, (HEALTH, figure, projection, kind))): value
        for figure, projection, layers in by_layer(health)
        for kind, value in _over_layers(layers)
    }


def _over_layers(layers: Sequence[float | None]) -> Iterator[tuple[str, float]]:
    numbers = [each for each in layers if each is not None and math.isfinite(each)]
    if numbers:
        yield from (("min", min(numbers)), ("median", median(numbers)), ("max", max(numbers)))


def _name(key: str) -> str:
    kind, _, name = key.partition("/")
    if name:  # of one of several: val_loss/wiki
        return f"{GROUPS.get(kind, kind)}/{name}"
    return GROUPS.get(key, f"perf/{key}")
