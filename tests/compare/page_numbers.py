"""A report's page against the raw lines of its ledger: every number is counted again, by other code
than the report's."""

import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706}  # Student's, 95 %, two-sided
POWERS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
NUMBER = re.compile(r"([\d,]+(?:\.(\d+))?(?:e[+-]?\d+)?)(?: ?([kMGTPE]))?(?= ?B?\b|$)")


class Tables(HTMLParser):
    """`tables`: of each its rows, of each row its cells as (text, data-value)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self.value: str | None = None
        self.text: list[str] | None = None
        self.inner = 0  # in pictures
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name == "svg":
            self.inner += 1
        elif name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.text, self.value = [], dict(attributes).get("data-value")

    def handle_endtag(self, name: str) -> None:
        if name == "svg":
            self.inner -= 1
        elif name in ("td", "th") and self.text is not None:
            self.tables[-1][-1].append(("".join(self.text), self.value))
            self.text = None

    def handle_data(self, data: str) -> None:
        if self.text is not None and not self.inner:
            self.text.append(data)


def numbers(text: str) -> list[tuple[float, float]]:
    """(value, half a unit of its last digit) of each number in a cell."""
    found = []
    for digits, decimals, letter in NUMBER.findall(text):
        power = POWERS[letter]
        found.append((float(digits.replace(",", "")) * power, 0.5 * power / 10 ** len(decimals)))
    return found


def check(cell: tuple[str, str | None], *expected: float | None) -> None:
    """A cell that stands for the first number, and says all of them, rounded."""
    text, value = cell
    if expected[0] is None:
        assert (text, value) == ("-", "")
        return
    assert value is not None and math.isclose(float(value), expected[0], rel_tol=1e-9), cell
    said = numbers(text)
    for (number, half), wanted in zip(said, expected, strict=True):
        assert wanted is not None and abs(number - wanted) <= half * 1.001, (cell, wanted)


def check_page(page: str, plan: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> int:
    """AssertionError where the page says another number than the lines give. The arms that have
    whole runs are counted."""
    last = {line["member"]: line for line in lines if line["arm"] in plan["arms"]}
    done = [line for line in last.values() if line["state"] == "done"]
    results, costs = Tables(page).tables[:2]
    check_short_runs(results, plan, done)
    assert {row[0][0] for row in results[1:]} == set(plan["arms"])
    finals = {
        arm: {line["seed"]: line for line in done if (line["arm"], line["phase"]) == (arm, "final")}
        for arm in plan["arms"]
    }
    order = [row[0][0] for row in results[1:] if finals[row[0][0]]]
    means = [np.mean([line["val_loss"] for line in finals[arm].values()]) for arm in order]
    assert means == sorted(means)
    for table, checked in ((results, check_results), (costs, check_costs)):
        heading = [text for text, _ in table[0]]
        for row in table[1:]:
            name = row[0][0]
            if finals[name]:
                checked(dict(zip(heading, row, strict=True)), name, finals, plan)
    return len(order)


def check_short_runs(
    results: Sequence[Sequence[tuple[str, str | None]]],
    plan: Mapping[str, Any],
    done: Sequence[Mapping[str, Any]],
) -> None:
    """Of each arm whose short runs have all ended."""
    best = {
        arm: min(
            (of["val_loss"] for of in done if (of["arm"], of["phase"]) == (arm, "lr")),
            default=None,
        )
        for arm in plan["arms"]
    }
    share = 100 * plan["lr_share"]
    heading = f"perplexity after {share:g} % of a run, one seed"
    at = next((i for i, (text, _) in enumerate(results[0]) if text == heading), None)
    assert (at is None) == (not plan["lr"])
    for row in results[1:] if at is not None else ():
        name, (text, value) = row[0][0], row[at]
        own, base = best[name], best[plan["baseline"]]
        if value and own is not None:
            percents = [abs(100 * math.expm1(own - base))] if "(" in text and base else []
            check((text, value), math.exp(own), *percents)
            assert not percents or ("lower" in text) == (own <= (base or 0))


def check_results(
    row: Mapping[str, tuple[str, str | None]],
    name: str,
    finals: Mapping[str, Mapping[int, Mapping[str, Any]]],
    plan: Mapping[str, Any],
) -> None:
    own = list(finals[name].values())
    losses = np.array([line["val_loss"] for line in own])
    loss, first = losses.mean(), own[0]
    n = first["biased_batches"]
    spread = [losses.std(ddof=1)] if len(losses) > 1 else []
    check(row["validation perplexity"], np.exp(loss), *(100 * (np.exp(s) - 1) for s in spread))
    check(row["validation loss"], loss, *spread)
    check(row["biased perplexity, as papers print it"], np.exp(loss * n / (n + 1)))
    bits = [line["bits_per_byte"] for line in own]
    check(row["bits per byte"], None if None in bits else np.mean(bits))
    for heading, key in (("tokens", "tokens"), ("training FLOPs", "flops"), ("seconds", "seconds")):
        check(row[heading], np.mean([line[key] for line in own]))
    if plan["lr"]:
        check(row["learning rate"], first["lr"])
    base = plan["baseline"]
    seeds = sorted(finals[name].keys() & finals[base].keys())
    text, value = row[f"against {base} (95 % interval)"]
    if name == base or not seeds:
        return
    loss_of = {arm: np.array([finals[arm][s]["val_loss"] for s in seeds]) for arm in (name, base)}
    differences = loss_of[name] - loss_of[base]
    mean = differences.mean()
    assert value is not None and math.isclose(float(value), 100 * np.expm1(mean), rel_tol=1e-9)
    if len(seeds) == 1:
        assert text.startswith("one seed tells nothing")
        return
    half = T[len(seeds) - 1] * differences.std(ddof=1) / math.sqrt(len(seeds))
    ends = sorted(abs(100 * np.expm1(mean + side * half)) for side in (-1, 1))
    verdict = "better" if mean + half < 0 else "worse" if mean - half > 0 else "not told apart"
    assert text.startswith(verdict), (text, mean, half)
    said = sorted(number for number, _ in numbers(text.replace("95 %", ""))[-2:])
    assert all(abs(a - b) < 0.051 for a, b in zip(said, ends, strict=True)), (text, ends)


def check_costs(
    row: Mapping[str, tuple[str, str | None]],
    name: str,
    finals: Mapping[str, Mapping[int, Mapping[str, Any]]],
    plan: Mapping[str, Any],
) -> None:
    own = list(finals[name].values())
    first = own[0]
    check(row["parameters"], first["parameters"])
    check(row["of them trained"], first["trained_parameters"])
    check(row["training FLOPs a token"], first["flops_per_token"])
    check(row["tokens a second"], np.median([line["tokens_per_second"] for line in own]))
    for part, size in first["memory"].items():
        check(row[f"{part}, planned"], size)
    check(row["parts together"], sum(first["memory"].values()))
    check(row["measured peak"], max(line["peak_memory_bytes"] for line in own))
