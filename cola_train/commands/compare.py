"""The command `cola-compare`: methods trained side by side, and a report of what came of each."""

import dataclasses
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from cola_train.commands.cli import compose, parse_flags, run_composed
from cola_train.commands.config_file import read_command_line
from cola_train.compare.journal import Journal
from cola_train.compare.ledger import locked, read_ledger
from cola_train.compare.members import Members
from cola_train.compare.plan import (
    PLAN,
    Budget,
    Plan,
    Seeds,
    checked_plan,
    of_plan,
    plain,
    read_plan,
    write_plan,
)
from cola_train.compare.report import write_report
from cola_train.compare.running import Local, gpus
from cola_train.compare.slurm import Slurm, read_arrays
from cola_train.config.checks import CHECKS, OF_THE_CONFIG, load
from cola_train.config.fields import (
    OneOrMore,
    PathText,
    PositiveFloat,
    PositiveFraction,
    Range,
    Workers,
    build,
    known,
)
from cola_train.config.schema import Config
from cola_train.errors import EXIT_DONE, EXIT_FAULT, EXIT_USER_ERROR, TrainingError, UserError
from cola_train.methods import METHODS

GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)  # lr=grid


@dataclass(frozen=True)
class CompareOptions:
    """What `cola-compare` takes beside every option of `cola-train`, which all runs get."""

    folder: PathText = "comparisons/mine"  # the comparison's own; what is in it goes on
    # names; added to what is compared so far
    methods: Annotated[list[str], OneOrMore()] = field(default_factory=list)
    # methods with options: your name -> overrides, {big:[method=cola,method.rank=64]}; added too
    arms: dict[str, list[str]] = field(default_factory=dict)
    baseline: str | None = None  # the one that others are compared with; null: the first
    tokens: PositiveFloat | None = None  # that the baseline sees in a whole run
    budget: Budget | None = None  # of the baseline, and equal for all; null: tokens
    seeds: Seeds | None = None  # whole runs of each; null: 3
    # learning rates to try: grid | own (that of the options) | a list, [1e-3,3e-3]; null: grid
    lr: Annotated[list[str], OneOrMore()] | None = None
    lr_share: PositiveFraction | None = None  # of a whole run, to try a rate; null: a fifth
    # nats by which a best short run must be below the baseline's to have whole ones; null: any
    drop: Annotated[float, Range(-1e3, 1e3)] | None = None
    # runs at a time; `-j N` too; null: one on this machine, on a cluster what it has room for
    jobs: Workers | None = None
    slurm: bool = False  # submit job arrays (launch/cluster.sh), and wait for them
    retry: bool = False  # run again what has failed
    report: bool = False  # make the report of what there is, and run nothing


OWN = {each.name for each in dataclasses.fields(CompareOptions)}


def main() -> None:
    """The command `cola-compare`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    arguments = re.sub(r"(^|\0)-j[\0=]?([^\0]*)", r"\1jobs=\2", "\0".join(sys.argv[1:]))
    sys.argv[1:] = arguments.split("\0") if arguments else []
    if {"-m", "--multirun"} & set(sys.argv):
        print("error: --multirun: a comparison has lists, methods=[ONE,ANOTHER]", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    run_composed(compare, command="cola-compare", own=CompareOptions)


def compare(values: Mapping[str, Any], problems: list[str]) -> int:
    """Go on with the comparison; returns the exit code.

    Raises:
        UserError: the plan is wrong, an arm cannot run, or another process works on it.
        TrainingError: its folder cannot be written any more.
    """
    options = build(CompareOptions, known(CompareOptions, values), "", problems)
    if problems:
        raise UserError(*problems)
    folder = Path(options.folder)
    typed = [word for word in parse_flags(sys.argv[1:])["overrides"] if not is_own(word)]
    before = read_plan(folder)
    plan = planned(options, before, typed)
    lines: Sequence[Mapping[str, Any]]
    try:
        if options.report:
            refuse_to_change(options, before, plan)
            code, lines = EXIT_DONE, of_plan(plan, read_ledger(folder).values())
            write_report(folder, plain(plan), lines)
        else:
            code, lines = go_on(options, folder, plan, plan != before)
    except OSError as error:
        raise TrainingError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; nothing that has "
            "run is lost: make room, and the same command goes on"
        ) from error
    failed = [line["member"] for line in lines if line["state"] != "done"]
    if failed:
        print(f"failed: {', '.join(failed)}; retry=true runs them again", file=sys.stderr)
    print(folder / "report.html")
    return code or (EXIT_FAULT if failed else EXIT_DONE)


def go_on(
    options: CompareOptions, folder: Path, plan: Plan, changed: bool
) -> tuple[int, Sequence[Mapping[str, Any]]]:
    """Run what is open, and make the report; returns the exit code, and the ledger's lines of the
    plan's members. changed: the plan is not the folder's yet. Raises as `compare`; OSError."""
    checks = OF_THE_CONFIG if options.slurm else CHECKS
    members = Members(plan, lambda words: composed(words, checks))
    runner = runner_of(options)
    with locked(folder):
        if changed:
            write_plan(folder, plan)
        journal = Journal(folder, members, options.retry)
        try:
            code = runner.run(journal)
        finally:
            write_report(folder, plain(plan), journal.current())
    return code, journal.current()


def runner_of(options: CompareOptions) -> Local | Slurm:
    """Raises UserError: there is no SLURM, or it has runs of this comparison, and is not asked."""
    folder = Path(options.folder)
    if options.slurm:
        return Slurm(folder, options.jobs)
    if arrays := read_arrays(folder):
        jobs = ", ".join(array.job or array.name for array in arrays)
        raise UserError(
            f"slurm: the jobs {jobs} have runs of {folder}; give slurm=true to go on with them. If "
            f"nothing of them is left in the queue, remove {folder}/slurm"
        )
    at_once = options.jobs or 1
    return Local(folder, at_once, gpus=gpus() if at_once > 1 else ())


def refuse_to_change(options: CompareOptions, before: Plan | None, plan: Plan) -> None:
    """Raises UserError if report=true is given what it would not do."""
    problems = [
        f"{name}: has no effect with report=true, which runs nothing; leave one of them out"
        for name in ("jobs", "slurm", "retry")
        if getattr(options, name)
    ]
    if before is None:
        problems.append(f"report: {options.folder} has no {PLAN}; there is nothing to report")
    elif plan != before:
        problems.append(f"report: it changes no plan; {options.folder}/{PLAN} has another")
    if problems:
        raise UserError(*problems)


def is_own(word: str) -> bool:
    return word.lstrip("+~").partition("=")[0].partition(".")[0] in OWN


def composed(words: Sequence[str], checks: Any) -> Config:
    """What `cola-train WORDS` would run. Raises UserError for what is wrong with them."""
    line = read_command_line(list(words))  # which knows of a user's own groups
    return load(compose(line.overrides, line.problems), line.problems, checks=checks)


def planned(options: CompareOptions, before: Plan | None, typed: list[str]) -> Plan:
    """What was planned before, and what is typed now.

    Raises:
        UserError: something is missing, or what has run would be void.
    """
    twice = [name for name in options.methods if name in options.arms]
    if twice:
        raise UserError(f"arms: {', '.join(twice)} is in methods too; give it another name")
    arms = {name: [f"method={name}"] for name in options.methods} | options.arms
    said: dict[str, Any] = {
        "baseline": options.baseline,
        "tokens": None if options.tokens is None else round(options.tokens),
        "budget": options.budget,
        "seeds": options.seeds,
        "lr": None if options.lr is None else rates(options.lr),
        "lr_share": options.lr_share,
        "drop": options.drop,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if before is None:
        if not arms:
            raise UserError(f"methods: missing; name some of {', '.join(METHODS)}, as a list")
        if "tokens" not in said:
            raise UserError("tokens: missing; how many does a whole run see, as in tokens=2e6?")
        first: dict[str, Any] = {"lr": rates(["grid"]), "baseline": next(iter(arms))}
        return checked_plan({"arms": arms, "common": typed, **first, **said}, "")
    changed = [
        f"{name}: {value} here, and {getattr(before, name)} in {options.folder}/{PLAN}"
        for name, value in [*said.items(), *([("common", typed)] if typed else [])]
        if name in ("baseline", "tokens", "budget", "lr_share", "common")
        and value != getattr(before, name)
    ]
    if "lr" in said and bool(said["lr"]) != bool(before.lr):
        changed.append(
            f"lr: {'a grid' if said['lr'] else 'own'} here, and {before.lr or 'own'} in "
            f"{options.folder}/{PLAN}"
        )
    changed += [
        f"arms: {name} is {words} here, and {before.arms[name]} in {options.folder}/{PLAN}"
        for name, words in arms.items()
        if before.arms.get(name, words) != words
    ]
    if changed:
        raise UserError(*(f"{each}; choose another folder, or leave it out" for each in changed))
    more: dict[str, Any] = {name: said[name] for name in ("seeds", "drop") if name in said}
    if "lr" in said:
        more["lr"] = sorted({*before.lr, *said["lr"]})
    return checked_plan(plain(replace(before, arms={**before.arms, **arms}, **more)), "")


def rates(words: list[str]) -> list[float]:
    """Raises UserError if they are no learning rates."""
    if words == ["grid"]:
        return list(GRID)
    if words == ["own"]:
        return []
    try:
        return sorted(float(word) for word in words)
    except ValueError as error:
        raise UserError(
            f"lr: must be grid, own, or a list of numbers as [1e-3,3e-3], got {words}"
        ) from error


if __name__ == "__main__":
    main()
