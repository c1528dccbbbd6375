"""Optimizers and what all of them share: peak rate, schedule, weight decay, clipping.

Importing this package imports no torch. A new optimizer is a module here with its options and what
they build, one entry in OPTIMIZERS, one YAML file, one test.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

from cola_train.config.fields import Fraction, NaturalFloat, NaturalInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class GroupOptions:
    """What is another for the parameters that a pattern matches."""

    weight_decay: NaturalFloat | None = None  # null: optim's
    lr: PositiveFloat | None = None  # the peak; null: optim's


@dataclass(frozen=True)
class OptimOptions:
    """The optimizer, and the learning rate over the run."""

    name: str
    lr: PositiveFloat = 3e-3  # the peak of the learning rate
    weight_decay: NaturalFloat = 0.01  # decoupled from the gradient
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"  # after a linear warm-up
    warmup_steps: NaturalInt | None = None  # null: a twentieth of train.steps
    decay_steps: PositiveInt | None = None  # the last ones, of wsd; null: a fifth of train.steps
    final_lr_ratio: Fraction = 0.1  # the last rate / lr; constant has none
    clip: PositiveFloat | None = 0.5  # of the global gradient norm; null: none
    # weight_decay, lr (its peak) or both for parameters by shell-style patterns of their names, of
    # which the first to match counts: {*norm*:{weight_decay:0},embedding*:{lr:1e-3}}
    groups: dict[str, GroupOptions] = field(default_factory=dict)

    # "module:function" of (groups, options) -> torch Optimizer; see `groups.parameter_groups`
    implementation: ClassVar[str]
    needs_matrices: ClassVar[bool] = False  # the update is not element by element

    def state_elements(self, shape: tuple[int, ...], block_matrix: bool) -> int:
        """Elements of state of a parameter of that shape; block_matrix: a matrix of a block."""
        raise NotImplementedError

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        return steps // 20 if self.warmup_steps is None else self.warmup_steps

    def decay(self, steps: int) -> int:
        """The steps of wsd's decay in a run of so many (a fifth: arXiv 2405.18392)."""
        return max(1, steps // 5) if self.decay_steps is None else self.decay_steps

    def problems(self, steps: int) -> Iterator[str]:
        """What is wrong with the options in a run of so many steps."""
        if self.warmup_steps is not None and self.warmup_steps > steps:
            yield (
                f"optim.warmup_steps: {self.warmup_steps} is more than train.steps ({steps}); "
                "lower it, or use optim.warmup_steps=null for a twentieth"
            )
        elif self.schedule == "wsd" and self.warmup(steps) + self.decay(steps) > steps:
            yield (
                f"optim.decay_steps: {self.decay(steps)} of decay after {self.warmup(steps)} of "
                f"warm-up are more than train.steps ({steps}); lower it or optim.warmup_steps"
            )
        for pattern, group in self.groups.items():
            if group == GroupOptions():
                yield (
                    f"optim.groups: `{pattern}` changes nothing; give it weight_decay or lr, as in "
                    f"{{{pattern}:{{weight_decay:0}}}}"
                )
        if self.decay_steps is not None and self.schedule != "wsd":
            yield (
                f"optim.decay_steps: {self.decay_steps} has no effect, optim.schedule="
                f"{self.schedule} has no stable phase; use optim.schedule=wsd, or leave it out"
            )
        if self.schedule == "constant" and self.final_lr_ratio != OptimOptions.final_lr_ratio:
            yield (
                f"optim.final_lr_ratio: {self.final_lr_ratio:g} has no effect, optim.schedule="
                "constant never falls; use optim.schedule=linear, or leave it out"
            )


@dataclass(frozen=True)
class AdamWOptions(OptimOptions):
    """AdamW."""

    betas: list[Fraction] = field(default_factory=lambda: [0.9, 0.95])  # of the two averages
    eps: PositiveFloat = 1e-8  # beside the root of the second one

    implementation = "cola_train.optim.adamw:adamw"

    def state_elements(self, shape: tuple[int, ...], block_matrix: bool) -> int:
        return 2 * prod(shape)

    def problems(self, steps: int) -> Iterator[str]:
        if len(self.betas) != 2 or any(beta >= 1 for beta in self.betas):
            yield f"optim.betas: two numbers from 0 to below 1 are expected, got {self.betas}"
        yield from super().problems(steps)


OPTIMIZERS: dict[str, type[OptimOptions]] = {"adamw": AdamWOptions}
