"""The published recipes, by method and size: what `experiment=paper_<size>` takes of them.

A method that was published with another recipe than CoLA's has its own beside its options:

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        lr = by_size((1e-2, 1e-2, 1e-2, 1e-2, 5e-3), size)
        clip = by_size((None, None, None, None, 1.0), size)
        return Recipe(lr=lr, warmup_steps=steps // 10, weight_decay=0.0, clip=clip)

No YAML file has these numbers: the experiments say `lr: ${recipe:60m,lr}`, and so on for each field
of a `Recipe` (`commands/groups.py` resolves it). A method's own option that was published by size
has the default null, and a method that looks it up:

    scale: PositiveFloat | None = None  # of B A; null: published for model.name (32 ... 8)

    def scale_of(self, model: ModelConfig) -> float:
        return by_size((32, 16, 16, 8, 8), model.name) if self.scale is None else self.scale
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
SIZES = ("60m", "130m", "350m", "1b", "7b")


@dataclass(frozen=True)
class Recipe:
    """The options of `optim` that a method was published with; see there."""

    lr: float
    warmup_steps: int
    weight_decay: float
    clip: float | None  # None: none


def by_size(table: Sequence[T], size: str) -> T:
    """The value of a size, of a table in the order of SIZES; any other size's is the smallest's."""
    assert len(table) == len(SIZES)
    return table[SIZES.index(size) if size in SIZES else 0]
