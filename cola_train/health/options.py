"""The options of what is measured of a run's bottlenecks."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from cola_train.config.fields import NaturalInt, PositiveFraction, PositiveInt


@dataclass(frozen=True)
class HealthConfig:
    """The health of bottlenecks: ranks, norms and updates, by block."""

    every: NaturalInt = 0  # steps between lines of health; 0: none
    alpha: PositiveFraction = 0.95  # share of the squares that an effective rank holds
    tokens: PositiveInt = 8192  # of one process that are looked at, in whole micro-batches


def void_options(config: HealthConfig) -> Iterator[str]:
    """Options that have no effect without another."""
    if config.every:
        return
    for field in fields(config):
        if (value := getattr(config, field.name)) != field.default:
            yield f"health.{field.name}: {value} has no effect without health.every; set that"
