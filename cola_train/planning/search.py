"""The best way to run a config, and what would make one fit that does not."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from importlib import import_module
from math import isqrt

from cola_train.config.checks import (
    cuda_graph_problems,
    engine_problems,
    matrix_problems,
    method_problems,
)
from cola_train.config.groups import RecomputeConfig
from cola_train.engines import ENGINES, EngineOptions
from cola_train.methods import METHODS
from cola_train.planning.estimate import Assumptions, StepTime, bisect, step_time
from cola_train.planning.memory import Memory, memory
from cola_train.planning.run import Run


@dataclass(frozen=True)
class Candidate:
    """One way to run the config, as overrides of `cola-train`."""

    run: Run
    overrides: tuple[str, ...]
    memory: Memory
    time: StepTime


def search(run: Run, given: Assumptions, goal: str, named: set[str]) -> list[Candidate]:
    """Every way that fits, the best first; of equally fast ones the simplest engine, then the one
    that sends less, computes less again, and needs less memory.

    Equally fast: to a percent, which is more than an estimate knows.

    goal: throughput or memory. named: the options on the command line, which stay as they are.
    """
    found = []
    data, own = run.topology.data, run.config.recompute.name
    share = run.config.batch_size // data
    for engine, engine_overrides in engines_left_open(run, named):
        for policy in [own] if names_group(named, "recompute") else run.config.method.policies:
            variant = run.with_config(engine=engine, recompute=RecomputeConfig(policy))
            fixed = "train.micro_batch_size" in named
            for size in [run.micro_batch_size] if fixed else divisors(share):
                candidate = variant.with_micro_batch(size, share // size)
                if not allowed(candidate):  # gradients are added up, say
                    continue
                held = memory(candidate)
                if held.total > given.usable_bytes:
                    continue  # a larger one may fit, if it is the whole share: no accumulation
                overrides = [*engine_overrides, f"recompute={policy}"]
                if run.config.train.batch_tokens is None:
                    overrides.append(f"train.batch_size={share * data}")
                overrides.append(f"train.micro_batch_size={size}")
                left = tuple(word for word in overrides if word.split("=")[0] not in named)
                found.append(Candidate(candidate, left, held, step_time(candidate, given)))
    simplest = list(ENGINES)  # first in the registry
    fastest = min((way.time.total for way in found), default=0.0)

    def rank(way: Candidate) -> tuple[float, ...]:
        engine = simplest.index(way.run.config.engine.name)
        if goal == "memory":
            return way.memory.total, engine, way.time.total
        slower, sent = round(100 * way.time.total / fastest), round(way.time.collectives, 6)
        return slower, engine, sent, way.run.cost.recomputed_flops, way.memory.total

    return sorted(found, key=rank)


def names_group(named: set[str], group: str) -> bool:
    return any(name == group or name.startswith(f"{group}.") for name in named)


def divisors(number: int) -> list[int]:
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def engines(run: Run) -> Iterator[tuple[EngineOptions, list[str]]]:
    """Engines and ways of sharding, with their overrides."""
    for options in ENGINES.values():
        yield from import_module(options.planner).ways(run)


def engines_left_open(run: Run, named: set[str]) -> Iterator[tuple[EngineOptions, list[str]]]:
    """Those that agree with the `engine` options on the command line."""
    own = run.config.engine
    options = {name.removeprefix("engine.") for name in named if name.startswith("engine.")}
    for engine, overrides in engines(run):
        searched = {word.split("=")[0].removeprefix("engine.") for word in overrides}
        if names_group(named, "engine") and engine.name != own.name:
            continue
        if any(getattr(engine, name) != getattr(own, name) for name in options & searched):
            continue
        kept = options & {field.name for field in fields(engine)}
        engine = replace(engine, **{name: getattr(own, name) for name in kept})
        if allowed(run.with_config(engine=engine)):
            yield engine, overrides


def allowed(run: Run) -> bool:
    """Whether method and engine go together in such a run."""
    checks = (method_problems, engine_problems, matrix_problems, cuda_graph_problems)
    return not any(problem for check in checks for problem in check(run.config, run.topology))


def smallest(run: Run) -> Run:
    """`run` with the smallest micro-batches that it can have: of one sequence, accumulated if there
    are several, or of a process's whole share of the batch, where gradients are not added up."""
    share = max(1, run.config.batch_size // run.topology.data)
    one = run.with_micro_batch(1, min(2, share))
    return one if allowed(one) else run.with_micro_batch(share, 1)


def changes(run: Run, gpus_per_node: int) -> Iterator[tuple[str, Run]]:
    """Single changes of a run that may need less memory, the smallest of each kind first."""
    for policy in run.config.method.policies:
        yield f"recompute={policy}", run.with_config(recompute=RecomputeConfig(policy))
    for engine, overrides in engines(run):
        yield " ".join(overrides), run.with_config(engine=engine)
    for factor in (2, 4, 8, 16, 32, 64):
        world = factor * run.processes
        more = replace(run.topology, world=world, local_world=min(world, gpus_per_node))
        yield f"gpus={world}", replace(run, topology=more)
    sequence = run.config.train.sequence_length
    while sequence > 256:
        sequence //= 2
        train = replace(run.config.train, sequence_length=sequence)
        yield f"train.sequence_length={sequence}", run.with_config(train=train)
    for name, options in METHODS.items():
        if name != run.config.method.name and run.config.recompute.name in options.policies:
            yield f"method={name}", run.with_config(method=options(name=name))


def what_would_help(run: Run, given: Assumptions, gpus_per_node: int) -> list[tuple[str, int]]:
    """Single changes after which the smallest micro-batch fits, with the bytes it then needs."""
    fitting: list[tuple[str, int]] = []
    for change, variant in changes(run, gpus_per_node):
        if not allowed(variant):
            continue
        needed = memory(smallest(variant)).total
        if variant != run and needed <= given.usable_bytes:
            kind = change.split("=")[0]
            if kind in ("gpus", "train.sequence_length") and any(
                known.startswith(kind) for known, _ in fitting
            ):
                continue  # the smallest change of its kind is enough
            fitting.append((change, needed))
    at_once = bisect(lambda size: memory(run.with_micro_batch(size, 1)).total <= given.usable_bytes)
    data = run.topology.data
    if 0 < at_once < run.config.batch_size // data:  # what accumulation takes is spared
        needed = memory(run.with_micro_batch(at_once, 1)).total
        fitting.append((f"train.batch_size={at_once * data}", needed))
    return fitting
