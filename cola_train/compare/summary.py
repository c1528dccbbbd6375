"""What a comparison shows: its plan and its ledger's lines, as one dict of plain values.

The one place of statistics; `report.json` is this dict, and page and table show nothing else.
Perplexities are exp of a mean loss in nats a token. Imports no torch.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cola_train.compare import verdicts
from cola_train.compare.plan import has_lost

Line = Mapping[str, Any]  # of the ledger
OWN = {"seed"}  # settings of a run rather than of an arm
MEMORY = ("weights", "gradients", "optimizer", "activations")  # planned, in the order shown


def summary(plan: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """Everything that a report shows.

    plan: as comparison.yaml has it. lines: the ledger's, those of members that the plan has; of
    several lines of a member the last one counts. Arms with whole runs come first, then those with
    short ones, the lowest loss at the top of each; `number` is an arm's place in the
    plan. What is not known is None.
    """
    last = {line["member"]: line for line in lines if line["arm"] in plan["arms"]}
    runs = {arm: [line for line in last.values() if line["arm"] == arm] for arm in plan["arms"]}
    arms = [_arm(plan, name, number, runs) for number, name in enumerate(plan["arms"])]
    arms.sort(key=lambda arm: (_or_last(arm["loss"]), _or_last(arm["short_perplexity"])))
    settings = {arm["name"]: arm.pop("settings") for arm in arms}
    return {
        "plan": dict(plan),
        "arms": arms,
        "finished": all(arm["state"] not in ("waiting", "unfinished") for arm in arms),
        "differences": {
            name: _difference([arm[name] for arm in arms]) for name in ("tokens", "flops")
        },
        "comparisons": sum(arm["against"]["verdict"] in verdicts.TESTED for arm in arms),
        "settings": _differing(settings),
        "dates": sorted({line["date"] for line in last.values()}),
        "machines": sorted({_machine(line) for line in last.values() if line["state"] == "done"}),
        "versions": sorted({_versions(line) for line in last.values()} - {""}),
        "commits": sorted({line["commit"] for line in last.values() if line.get("commit")}),
    }


def _arm(
    plan: Mapping[str, Any], name: str, number: int, runs: Mapping[str, Sequence[Line]]
) -> dict[str, Any]:
    """One arm's part."""
    own = runs[name]
    finals = sorted(_done(own, "final"), key=lambda line: line["seed"])
    baseline = sorted(_done(runs[plan["baseline"]], "final"), key=lambda line: line["seed"])
    rates = _rates(plan, own, finals)
    against = verdicts.against(name, plan["baseline"], _losses(finals), _losses(baseline))
    short, base_short = _best_short(plan, own), _best_short(plan, runs[plan["baseline"]])
    state, words = _state(plan, name, own, short, base_short)
    return {
        "name": name,
        "number": number,
        "baseline": name == plan["baseline"],
        "words": list(plan["arms"][name]),
        "state": state,
        "state_words": words,
        "failures": [
            {"member": line["member"], "why": line["why"]}
            for line in own
            if line["state"] == "failed"
        ],
        **rates,
        "short_perplexity": None if short is None else math.exp(short),
        "short_percent": (
            None
            if short is None or base_short is None or name == plan["baseline"]
            else 100 * math.expm1(short - base_short)
        ),
        **_quality(finals),
        "against": against,
        **_whole(finals),
        **_costs(finals or _done(own, "lr") or _done(own, "speed")),
        "curve": _curve(finals),
        "settings": finals[0]["settings"] if finals else {},
        "same_text": len(_texts(own) | _texts(runs[plan["baseline"]])) <= 1,
        "same_precision": len(_precisions(finals) | _precisions(baseline)) <= 1,
    }


def _done(lines: Sequence[Line], phase: str) -> list[Line]:
    return [line for line in lines if line["phase"] == phase and line["state"] == "done"]


def _texts(lines: Sequence[Line]) -> set[float]:
    """Tokens by bytes of the validation text, which tell a text or a tokenizer from another."""
    known = [line for line in lines if line["state"] == "done" and line["bits_per_byte"]]
    return {round(line["bits_per_byte"] / line["val_loss"], 6) for line in known}


def _precisions(finals: Sequence[Line]) -> set[str]:
    """That machines have chosen: by `train.precision=auto`."""
    chosen = [line for line in finals if line["settings"].get("train.precision") == "auto"]
    return {line["precision"] for line in chosen if line.get("precision")}


def _losses(finals: Sequence[Line]) -> dict[int, float]:
    return {line["seed"]: line["val_loss"] for line in finals}


def _quality(finals: Sequence[Line]) -> dict[str, Any]:
    """Over seeds: the mean loss and what is made of it; the sample standard deviation."""
    names = (
        "loss", "loss_spread", "perplexity", "spread_percent", "biased_perplexity",
        "biased_batches", "bits_per_byte",
    )  # fmt: skip
    found: dict[str, Any] = dict.fromkeys(names)
    found["seeds"] = [
        {"seed": line["seed"], "perplexity": math.exp(line["val_loss"])} for line in finals
    ]
    if not finals:
        return found
    losses = [line["val_loss"] for line in finals]
    loss = found["loss"] = statistics.fmean(losses)
    found["perplexity"] = math.exp(loss)
    if len(losses) > 1:
        found["loss_spread"] = statistics.stdev(losses)
        found["spread_percent"] = 100 * math.expm1(found["loss_spread"])
    batches = found["biased_batches"] = finals[0]["biased_batches"]
    if batches:
        found["biased_perplexity"] = math.exp(loss * batches / (batches + 1))
    bits = [line["bits_per_byte"] for line in finals]
    if None not in bits:
        found["bits_per_byte"] = statistics.fmean(bits)
    return found


def _whole(finals: Sequence[Line]) -> dict[str, Any]:
    """What a whole run takes, the mean over seeds."""
    names = ("tokens", "flops", "seconds")
    return {name: _mean([line[name] for line in finals]) for name in names}


def _costs(lines: Sequence[Line]) -> dict[str, Any]:
    """Of the model and a step: the same in every run, but for speed (the median) and the measured
    peak (the largest)."""
    names = ("flops_per_token", "parameters", "trained_parameters")
    first = lines[0] if lines else {}
    memory = first.get("memory")
    peaks = [line["peak_memory_bytes"] for line in lines if line["peak_memory_bytes"]]
    return {
        **{name: first.get(name) for name in names},
        "tokens_per_second": (
            statistics.median(line["tokens_per_second"] for line in lines) if lines else None
        ),
        "memory": memory and {part: memory[part] for part in MEMORY},
        "planned_memory": memory and sum(memory[part] for part in MEMORY),
        "peak_memory": max(peaks, default=None),
    }


def _curve(finals: Sequence[Line]) -> list[dict[str, float]]:
    """The validations that all seeds have made: means over seeds, the lowest and highest loss.

    FLOPs are those of the whole run by the share of its steps.
    """
    by_step = [{point[0]: point for point in line["curve"]} for line in finals]
    found = []
    for step in sorted(set.intersection(*map(set, by_step))) if by_step else ():
        _, tokens, seconds, losses = zip(*(points[step] for points in by_step), strict=True)
        shares = [step / line["steps"] * line["flops"] for line in finals]
        found.append(
            {
                "step": step,
                "tokens": statistics.fmean(tokens),
                "flops": statistics.fmean(shares),
                "seconds": statistics.fmean(seconds),
                "loss": statistics.fmean(losses),
                "low": min(losses),
                "high": max(losses),
            }
        )
    return found


def _rates(plan: Mapping[str, Any], own: Sequence[Line], finals: Sequence[Line]) -> dict[str, Any]:
    """The learning rate of whole runs, and the curve that it was chosen from.

    lr_edge: where the best of the grid is at its end, which one that is, in words; else "".
    """
    grid = sorted(plan["lr"] or ())
    short = sorted((line for line in own if line["phase"] == "lr"), key=lambda line: line["lr"])
    curve = [
        {"lr": line["lr"], "loss": line["val_loss"] if line["state"] == "done" else None}
        for line in short
    ]
    all_tried = len(curve) >= len(grid)
    tried = [point for point in curve if point["loss"] is not None]
    best = min(tried, key=lambda point: point["loss"])["lr"] if tried and all_tried else None
    edge = ""
    if best is not None and len(grid) == 1:
        edge = "the only one"
    elif best is not None and best in (grid[0], grid[-1]):
        edge = f"the grid's {'smallest' if best == grid[0] else 'largest'}"
    if best is None and finals:
        best = finals[0]["lr"] or finals[0]["settings"].get("optim.lr")
    return {"lr": best, "lr_edge": edge, "lr_curve": curve}


def _best_short(plan: Mapping[str, Any], own: Sequence[Line]) -> float | None:
    """The lowest loss of an arm's short runs, when all have ended."""
    ended = [line for line in own if line["phase"] == "lr"]
    if len(ended) < len(plan["lr"] or ()):
        return None
    return min((line["val_loss"] for line in _done(own, "lr")), default=None)


def _state(
    plan: Mapping[str, Any],
    name: str,
    own: Sequence[Line],
    short: float | None,
    base_short: float | None,
) -> tuple[str, str]:
    """done, unfinished, failed, dropped or waiting; and the same in words."""
    seeds, grid = plan["seeds"], len(plan["lr"] or ())
    ended = [line for line in own if line["phase"] == "final"]
    tried = sum(line["phase"] == "lr" for line in own)
    if ended:
        return _state_of_seeds(seeds, ended)
    if not own:
        return "waiting", "not begun"
    if tried < grid:
        return "unfinished", f"{tried} of {grid} learning rates tried"
    if grid and short is None:
        return "failed", "failed at every learning rate"
    if short is not None and _dropped(plan, name, short, base_short):
        return "dropped", "dropped after the short runs"
    return "waiting", f"0 of {seeds} seeds so far"


def _state_of_seeds(seeds: int, ended: Sequence[Line]) -> tuple[str, str]:
    well = sum(line["state"] == "done" for line in ended)
    if well == seeds:
        return "done", "done, 1 seed" if seeds == 1 else f"done, {seeds} seeds"
    failed = f", {len(ended) - well} failed" if len(ended) > well else ""
    if len(ended) < seeds:
        return "unfinished", f"{well} of {seeds} seeds so far{failed}"
    return "failed", f"{well} of {seeds} seeds{failed}"


def _dropped(plan: Mapping[str, Any], name: str, short: float, base_short: float | None) -> bool:
    """Whether the plan's rule lets an arm have no whole runs, by the best of its short ones."""
    if plan["drop"] is None or name == plan["baseline"] or base_short is None:
        return False
    return has_lost(plan["drop"], short, base_short)


def _or_last(value: float | None) -> float:
    """To sort by, upwards."""
    return math.inf if value is None else value


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _difference(values: Sequence[float | None]) -> float | None:
    """By how many percent the largest is above the smallest; None with fewer than two."""
    known = [value for value in values if value is not None]
    return 100 * (max(known) / min(known) - 1) if len(known) > 1 else None


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """option -> arm -> value, of options that are not the same in all arms; an arm that does not
    have the option is left out there. Arms without a whole run have no settings yet."""
    known = {arm: values for arm, values in settings.items() if values}
    found = {}
    for name in sorted({name for values in known.values() for name in values} - OWN):
        values = {arm: values[name] for arm, values in known.items() if name in values}
        first = next(iter(values.values()))
        if len(values) < len(known) or any(value != first for value in values.values()):
            found[name] = values
    return found


def _versions(line: Line) -> str:
    return ", ".join(f"{name} {version}" for name, version in line["versions"].items() if version)


def _machine(line: Line) -> str:
    threads = line.get("threads")
    if threads is None:
        return str(line["machine"])
    return f"{line['machine']}, {threads} {'thread' if threads == 1 else 'threads'} a run"
