"""The report's tables, for page and Markdown alike: what a column has, and how it is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cola_train.compare.summary import MEMORY
from cola_train.compare.verdicts import lower

Arm = Mapping[str, Any]  # of a summary
UNKNOWN = "-"


@dataclass(frozen=True)
class Column:
    """value: what a cell stands for, which sorting goes by. text: what it says, of a known value.
    words: cells have sentences rather than numbers."""

    heading: str
    value: Callable[[Arm], Any]
    text: Callable[[Arm], str]
    words: bool = False

    def cell(self, arm: Arm) -> str:
        return UNKNOWN if self.value(arm) is None else self.text(arm)


def results(summary: Mapping[str, Any]) -> list[Column]:
    """How well each arm did, and what it took."""
    baseline, share = summary["plan"]["baseline"], summary["plan"]["lr_share"]
    short_runs = [
        Column(
            f"perplexity after {100 * share:g} % of a run, one seed",
            lambda arm: arm["short_perplexity"],
            _short_runs,
            words=True,
        )
    ]
    return [
        Column("arm", lambda arm: arm["number"], lambda arm: arm["name"]),
        Column("validation perplexity", lambda arm: arm["perplexity"], _perplexity),
        Column(
            f"against {baseline} (95 % interval)",
            lambda arm: 0.0 if arm["baseline"] else arm["against"]["percent"],
            lambda arm: arm["against"]["words"],
            words=True,
        ),
        Column("state", lambda arm: arm["state_words"], lambda arm: arm["state_words"], words=True),
        Column("validation loss", lambda arm: arm["loss"], _loss),
        Column(
            "biased perplexity, as papers print it",
            lambda arm: arm["biased_perplexity"],
            lambda arm: f"{arm['biased_perplexity']:.2f}",
        ),
        Column(
            "bits per byte",
            lambda arm: arm["bits_per_byte"],
            lambda arm: f"{arm['bits_per_byte']:.4f}",
        ),
        *(short_runs if summary["plan"]["lr"] else []),
        Column("learning rate", lambda arm: arm["lr"], _rate, words=True),
        _short("tokens", "tokens"),
        _short("training FLOPs", "flops"),
        Column("seconds", lambda arm: arm["seconds"], lambda arm: f"{arm['seconds']:,.0f}"),
    ]


def costs() -> list[Column]:
    """What each arm's model is, computes and stores. Memory is in bytes."""
    return [
        Column("arm", lambda arm: arm["number"], lambda arm: arm["name"]),
        _short("parameters", "parameters"),
        _short("of them trained", "trained_parameters"),
        _short("training FLOPs a token", "flops_per_token"),
        _short("tokens a second", "tokens_per_second"),
        *(_part(part) for part in MEMORY),
        _short("parts together", "planned_memory", "B"),
        _short("measured peak", "peak_memory", "B"),
    ]


def differing(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the settings that differ: a row an option, a column an arm."""
    settings = summary["settings"]
    known = {name for values in settings.values() for name in values}
    arms = [arm["name"] for arm in summary["arms"] if arm["name"] in known]
    rows = [
        [option, *(setting(values[arm]) if arm in values else UNKNOWN for arm in arms)]
        for option, values in settings.items()
    ]
    return ["option", *arms], rows


def setting(value: Any) -> str:
    """An option's value as an override has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(value: float, unit: str = "") -> str:
    """Three digits and a power of a thousand: 1.71M, 17.5T; of a unit 1.71 MB."""
    for i, letter in enumerate("EPTGMk"):
        power = 1000.0 ** (6 - i)
        if value >= 0.9995 * power:
            digits = 2 if value < 9.995 * power else 1 if value < 99.95 * power else 0
            return f"{value / power:.{digits}f}{unit and ' '}{letter}{unit}"
    return f"{value:.3g}{unit and ' '}{unit}"


def _short(heading: str, name: str, unit: str = "") -> Column:
    return Column(heading, lambda arm: arm[name], lambda arm: short(arm[name], unit))


def _part(part: str) -> Column:
    return Column(
        f"{part}, planned",
        lambda arm: arm["memory"] and arm["memory"][part],
        lambda arm: short(arm["memory"][part], "B"),
    )


def _perplexity(arm: Arm) -> str:
    spread = arm["spread_percent"]
    return f"{arm['perplexity']:.2f}" + ("" if spread is None else f" ± {spread:.1f} %")


def _loss(arm: Arm) -> str:
    spread = arm["loss_spread"]
    return f"{arm['loss']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _short_runs(arm: Arm) -> str:
    percent = arm["short_percent"]
    beside = "" if percent is None else f" ({lower(percent)})"
    return f"{arm['short_perplexity']:.2f}{beside}"


def _rate(arm: Arm) -> str:
    return f"{arm['lr']:g}" + (f" ({arm['lr_edge']})" if arm["lr_edge"] else "")
