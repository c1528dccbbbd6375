"""Every number has bounds, and within them nothing overflows."""

import dataclasses
import math
from typing import Annotated, Any, get_args, get_origin

import pytest
from helpers import TINY_VALUES, values_config

from cola_train.commands.plan import PlanConfig
from cola_train.config.fields import Range, field_types, union_of
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.gpus import GPUS
from cola_train.parallel.topology import Topology
from cola_train.planning.estimate import Assumptions, step_time
from cola_train.planning.memory import memory
from cola_train.planning.run import Run

EXTREMES = [
    2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, -1, -(2**63), 1e30, 1e300, -1e300, 5e-324,
    1e-300, float("inf"), float("nan"),
]  # fmt: skip


WITH: dict[str, dict[str, Any]] = {  # without which an option is refused, whatever its value
    "engine.shard_size": {"sharding": "hybrid"},
    "evaluation.task_limit": {"tasks": ["words"]},
    "evaluation.tasks_every": {"tasks": ["words"]},
    "health.alpha": {"every": 1},
    "health.tokens": {"every": 1},
    "optim.decay_steps": {"schedule": "wsd"},
    "train.batch_size": {"micro_batch_size": None},
    "train.batch_tokens": {"micro_batch_size": None, "batch_size": None},
}


def range_of(kind: Any) -> Range | None:
    """The bounds of a number, an optional number or a list of numbers."""
    if get_origin(kind) is Annotated:
        return next((mark for mark in get_args(kind)[1:] if isinstance(mark, Range)), None)
    return next(filter(None, map(range_of, get_args(kind))), None)


def is_number(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return is_number(get_args(kind)[0])
    return kind in (int, float) or any(map(is_number, get_args(kind)))


NUMBERS = {name: kind for name, kind in field_types(Config).items() if is_number(kind)}


def load_with(name: str, value: Any) -> Config:
    """A tiny config with one option set, in whichever member of a union has it."""
    *groups, option = name.split(".")
    if not groups:
        return values_config(method={"name": "cola"}, **{option: value})
    (group,) = groups
    field = next(field for field in dataclasses.fields(Config) if field.name == group)
    member = {}
    if (union := union_of(field.type)) is not None:
        (tag, *_) = [
            tag
            for tag, cls in union.members.items()
            if option in {field.name for field in dataclasses.fields(cls)}
        ]
        member = {union.tag: tag}
    values = {**TINY_VALUES.get(group, {}), **member, **WITH.get(name, {}), option: value}
    return values_config(**{"method": {"name": "cola"}, group: values})


def test_every_number_has_bounds():
    assert len(NUMBERS) > 35
    everything = NUMBERS | {k: v for k, v in field_types(PlanConfig).items() if is_number(v)}
    assert [name for name, kind in everything.items() if range_of(kind) is None] == []


@pytest.mark.parametrize("name", NUMBERS)
def test_an_extreme_is_refused_or_can_be_planned_with(name):
    """What is accepted, each bound included, has a memory and a time."""
    bounds = range_of(NUMBERS[name])
    accepted = False
    for value in (*EXTREMES, bounds.low, bounds.high):
        values = [value] if "list" not in str(NUMBERS[name]) else [[value, value], value]
        values = [{"q": value}] if get_origin(NUMBERS[name]) is dict else values
        for given in values:
            try:
                config = load_with(name, given)
            except UserError as error:
                assert any(name.split(".")[-1] in problem for problem in error.problems)
                continue
            accepted = True
            run = Run(config, Topology(world=1, local_world=1))
            assumptions = Assumptions(GPUS["h100-80gb"], 0.7, 400.0, 0.1)
            assert memory(run).total > 0 and 0 < step_time(run, assumptions).total < math.inf
    assert accepted
