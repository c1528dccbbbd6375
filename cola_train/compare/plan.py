"""The plan of a comparison, `comparison.yaml`: what is compared, and for how long each is trained.

An arm is a method with its options. A member is one run of an arm: short ones at each learning rate
of the grid, then whole ones at the best of them, with other seeds. Imports no torch.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from cola_train.config.fields import PositiveFloat, PositiveFraction, PositiveInt, Range, build
from cola_train.errors import UserError
from cola_train.files import read_yaml, write_text

PLAN = "comparison.yaml"  # in a comparison's folder

# Options of a run that the comparison says itself, and what to do.
OWNED = {
    "train.steps": "the budget says it; give tokens=",
    "train.stop_after": "a run goes to its end; leave it out",
    "seed": "each run has its own; give seeds=, how many",
    "run_name": "each run has its own; leave it out",
    "run_dir": "each run has its own; give folder=, the comparison's",
}

Budget = Literal["tokens", "flops", "seconds"]
Seeds = Annotated[int, Range(1, 1000)]


@dataclass(frozen=True)
class Plan:
    """What `comparison.yaml` holds."""

    arms: dict[str, list[str]]  # name -> overrides of cola-train
    common: list[str]  # overrides of all arms, which an arm's own win over
    baseline: str  # the arm that others are compared with, and whose budget is theirs
    tokens: PositiveInt  # that the baseline sees in a whole run
    budget: Budget = "tokens"  # what is equal: tokens, the FLOPs or the time of the baseline
    seeds: Seeds = 3  # whole runs of each arm
    lr: list[PositiveFloat] = field(default_factory=list)  # the grid; empty: as the arms say
    lr_share: PositiveFraction = 0.2  # of a whole run: as long are the runs that choose from it
    # nats: an arm whose best short run is not below the baseline's by so much (negative: is above
    # it by more) has no whole ones; null: all have
    drop: Annotated[float, Range(-1e3, 1e3)] | None = None

    def problems(self) -> list[str]:
        """What is wrong with it, beside the types of fields."""
        found = []
        if not self.arms:
            found.append("arms: there is none; methods=[...] makes some")
        elif self.baseline not in self.arms:
            found.append(
                f"baseline: must be one of the arms {', '.join(self.arms)}, got {self.baseline!r}"
            )
        found += [
            f"arms: {name!r} is no name; use letters, digits, _, - and ."
            for name in self.arms
            if not name or not name.replace("-", "").replace(".", "").replace("_", "").isalnum()
        ]
        for place, words in {"common": self.common, **self.arms}.items():
            names = [option_of(word) for word in words]
            found += [f"{place}: {name}: {OWNED[name]}" for name in names if name in OWNED]
            if "resume=never" in words:
                found.append(f"{place}: resume=never: a run that was stopped goes on; leave it out")
            if self.lr and "optim.lr" in names:
                found.append(
                    f"{place}: optim.lr: the grid of lr says it; leave it out, or give lr=own"
                )
        everyones = [{option_of(word) for word in words} for words in self.arms.values()]
        said = [option_of(word) for word in self.common]
        found += [
            f"common: {name}: has no effect, as every arm says its own; leave it out"
            for name in dict.fromkeys(said)
            if everyones and name in set.intersection(*everyones)
        ]
        if len({f"{lr:g}" for lr in self.lr}) < len(self.lr):
            found.append(f"lr: {self.lr} has a rate twice")
        if self.drop is not None and not self.lr:
            found.append("drop: has no effect without a grid in lr, whose runs it goes by")
        return found


def option_of(word: str) -> str:
    """The name of the option or the group that an override sets."""
    return word.lstrip("+~").partition("=")[0]


def read_plan(folder: Path) -> Plan | None:
    """The folder's; None, if it has none.

    Raises:
        UserError: it cannot be read, or is wrong.
    """
    path = folder / PLAN
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if isinstance(values, dict):
        values = {
            name: value if name in ("arms", "common", "baseline") else _as_meant(value)
            for name, value in values.items()
        }
    return checked_plan(values, str(path))


def _as_meant(value: Any) -> Any:
    """1e-3 and 2e6 as numbers, which YAML takes for texts."""
    if isinstance(value, list):
        return [_as_meant(item) for item in value]
    if not isinstance(value, str) or not re.fullmatch(r"-?\d+(\.\d*)?e[-+]?\d{1,3}", value, re.I):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number


def checked_plan(values: Any, place: str) -> Plan:
    """Raises UserError, every problem with `place`, if values are no plan."""
    problems: list[str] = []
    plan: Plan = build(Plan, values, "", problems)
    problems = problems or plan.problems()
    if problems:
        raise UserError(*(f"{place}: {problem}" if place else problem for problem in problems))
    return plan


def write_plan(folder: Path, plan: Plan) -> None:
    """Raises OSError if the folder cannot be written."""
    values = plain(plan)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    comment = "# A comparison; in its folder, `cola-compare folder=.` goes on."
    write_text(folder / PLAN, f"{comment}\n{text}")


def plain(plan: Plan) -> Mapping[str, Any]:
    """As YAML and JSON have it."""
    return dataclasses.asdict(plan)


def has_lost(drop: float, best: float, baseline: float) -> bool:
    """The rule of `drop`: whether an arm has no whole runs, by the lowest losses of its short runs
    and of the baseline's."""
    return best > baseline - drop


def of_plan(plan: Plan, lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a ledger's lines that the plan's report shows, by their words alone: an arm whose
    options are of an earlier version, which no config can be made of, has what it had."""
    seeds, rates = range(plan.seeds), {*plan.lr, None}

    def is_of_it(line: Mapping[str, Any]) -> bool:
        if line["arm"] not in plan.arms:
            return False
        begins = [*plan.common, *plan.arms[line["arm"]]]
        words, more = line["words"][: len(begins)], line["words"][len(begins) :]
        # what a run has beyond its arm's words begins with its steps
        its_own = words == begins and more != [] and option_of(more[0]) == "train.steps"
        return its_own and line["seed"] in seeds and line["lr"] in rates

    found = [line for line in lines if is_of_it(line)]
    short = [line for line in found if line["phase"] == "lr" and line["state"] == "done"]
    short.sort(key=lambda line: line["val_loss"], reverse=True)
    best = {line["arm"]: line["lr"] for line in short}
    # a whole run at a rate that another has beaten since is of an earlier grid
    return [of for of in found if of["phase"] != "final" or of["lr"] == best.get(of["arm"])]
