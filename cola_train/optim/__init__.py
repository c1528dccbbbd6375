"""Optimizers and what all of them share: peak rate, schedule, weight decay, clipping.

Importing this package imports no torch. A new optimizer is a module here with its options and what
they build, one entry in OPTIMIZERS, one YAML file, one test.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, ClassVar, Literal

from cola_train.config.fields import (
    Fraction,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Range,
)
from cola_train.optim.costs import DECAY, Product, UpdateCost


@dataclass(frozen=True)
class GroupOptions:
    """What is another for the parameters that a pattern matches."""

    weight_decay: NaturalFloat | None = None  # null: optim's
    lr: PositiveFloat | None = None  # the peak; null: optim's
    lr_ratio: PositiveFloat | None = None  # of the peak to optim's, in place of lr


@dataclass(frozen=True)
class OptimOptions(ABC):
    """The optimizer, and the learning rate over the run."""

    name: str
    lr: PositiveFloat = 3e-3  # the peak of the learning rate
    weight_decay: NaturalFloat = 0.01  # decoupled from the gradient
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"  # after a linear warm-up
    warmup_steps: NaturalInt | None = None  # null: warmup_ratio of train.steps
    warmup_ratio: Fraction = 0.05  # of train.steps, where warmup_steps is null
    decay_steps: PositiveInt | None = None  # the last ones, of wsd; null: a fifth of train.steps
    final_lr_ratio: Fraction = 0.1  # the last rate / lr; constant has none
    clip: PositiveFloat | None = 0.5  # of the global gradient norm; null: none
    # weight_decay, and lr (its peak) or lr_ratio (of this lr), for parameters by shell-style
    # patterns of their names: the first to match counts; {*norm*:{weight_decay:0},*_A:{lr_ratio:2}}
    groups: dict[str, GroupOptions] = field(default_factory=dict)

    # "module:function" of (groups, options) -> torch Optimizer; see `groups.parameter_groups`
    implementation: ClassVar[str]
    needs_matrices: ClassVar[bool] = False  # the update is not element by element

    @abstractmethod
    def state_elements(self, shape: tuple[int, ...], block_matrix: bool) -> int:
        """Elements of state of a parameter of that shape; block_matrix: a matrix of a block."""

    def update_cost(self, matrices: Sequence[tuple[int, int]], shards: int) -> UpdateCost:
        """Of the trained matrices of all blocks, cut by rows among `shards` processes, on the one
        that holds most."""
        return UpdateCost()

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return int(steps * self.warmup_ratio + 1e-6)  # what a ratio says is no exact number

    def decay(self, steps: int) -> int:
        """The steps of wsd's decay in a run of so many (a fifth: arXiv 2405.18392)."""
        return max(1, steps // 5) if self.decay_steps is None else self.decay_steps

    def problems(self, steps: int) -> Iterator[str]:
        """What is wrong with the options in a run of so many steps."""
        if self.warmup_steps is not None and self.warmup_steps > steps:
            yield (
                f"optim.warmup_steps: {self.warmup_steps} is more than train.steps ({steps}); "
                "lower it, or use optim.warmup_steps=null for optim.warmup_ratio of them"
            )
        elif self.schedule == "wsd" and self.warmup(steps) + self.decay(steps) > steps:
            yield (
                f"optim.decay_steps: {self.decay(steps)} of decay after {self.warmup(steps)} of "
                f"warm-up are more than train.steps ({steps}); lower it or optim.warmup_steps"
            )
        if self.warmup_steps is not None and self.warmup_ratio != OptimOptions.warmup_ratio:
            yield (
                f"optim.warmup_ratio: {self.warmup_ratio:g} has no effect with optim.warmup_steps="
                f"{self.warmup_steps}; leave one of them out"
            )
        for pattern, group in self.groups.items():
            if group == GroupOptions():
                yield (
                    f"optim.groups: `{pattern}` changes nothing; give it weight_decay, lr or "
                    f"lr_ratio, as in {{{pattern}:{{weight_decay:0}}}}"
                )
            if group.lr is not None and group.lr_ratio is not None:
                yield (
                    f"optim.groups: `{pattern}` has lr and lr_ratio, two words for one rate; give "
                    "one of them"
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
class AdamOptions(OptimOptions):
    """What AdamW takes, wherever it is used."""

    betas: list[Fraction] = field(default_factory=lambda: [0.9, 0.95])  # of the two averages
    eps: PositiveFloat = 1e-8  # beside the root of the second one

    def state_elements(self, shape: tuple[int, ...], block_matrix: bool) -> int:
        return 2 * prod(shape)

    def problems(self, steps: int) -> Iterator[str]:
        if len(self.betas) != 2 or any(beta >= 1 for beta in self.betas):
            yield f"optim.betas: two numbers from 0 to below 1 are expected, got {self.betas}"
        yield from super().problems(steps)


@dataclass(frozen=True)
class AdamWOptions(AdamOptions):
    """AdamW."""

    implementation = "cola_train.optim.adamw:adamw"


@dataclass(frozen=True)
class MuonOptions(AdamOptions):
    """Muon on the matrices of the blocks, AdamW on all else; `lr` is Muon's."""

    momentum: Fraction = 0.95  # of the average of gradients
    nesterov: bool = True  # the update looks ahead, as Nesterov's momentum does
    ns_steps: Annotated[int, Range(1, 99)] = 5  # Newton-Schulz iterations
    # match_rms_adamw: updates as large as AdamW's, so its lr fits; original: Keller Jordan's
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    adamw_lr_ratio: PositiveFloat = 1.0  # of AdamW's learning rate to `lr`

    implementation = "cola_train.optim.muon:Muon"
    needs_matrices = True

    def state_elements(self, shape: tuple[int, ...], block_matrix: bool) -> int:
        return prod(shape) if block_matrix else super().state_elements(shape, block_matrix)

    def update_cost(self, matrices: Sequence[tuple[int, int]], shards: int) -> UpdateCost:
        """As optim/muon.py orthogonalises them, in bf16: as many at a time as there are processes
        in a shard group, each on one of them, which gets all rows and sends them back."""
        shapes = sorted(matrices, key=prod, reverse=True)
        products: Counter[Product] = Counter()
        passed = launches = workspace = gathered = returned = 0
        for m, n in shapes:
            own = -(-m // shards) * n
            returned += 2 * own
            # the average, N of it, which is rounded to bf16; decay, and the update, bf16, added
            passed += own * (4 * (3 + 3 * self.nesterov + DECAY.passes) + 6 + 10)
            launches += 3 + self.nesterov + DECAY.launches
        for m, n in shapes[::shards]:  # the first process's
            s, longer = sorted((m, n))
            # of s x s: X X^T, then its square; times X
            products[Product(s, s, longer)] += self.ns_steps
            products[Product(s, s, s, adds=True)] += self.ns_steps
            products[Product(s, longer, s, adds=True)] += self.ns_steps
            copied = shards > 1 and m > n  # back from its transpose
            passed += 2 * m * n * (3 + 2 * copied)
            launches += 3 + copied + 2 * (shards > 1)
            # X as it came, before and after an iteration; two of s x s; and the rows sent
            workspace = max(workspace, 2 * ((3 + (shards > 1)) * m * n + 2 * s * s))
            gathered += 2 * m * n
        traffic = {"all_to_all": gathered + returned} if shards > 1 else {}
        return UpdateCost(products, 2, launches, passed, workspace, traffic)

    def problems(self, steps: int) -> Iterator[str]:
        if self.momentum >= 1:
            yield f"optim.momentum: a number from 0 to below 1 is expected, got {self.momentum}"
        if self.nesterov and self.momentum == 0:
            yield (
                "optim.nesterov: has no effect with optim.momentum=0; use optim.nesterov=false, "
                "or another momentum"
            )
        yield from super().problems(steps)


OPTIMIZERS: dict[str, type[OptimOptions]] = {"adamw": AdamWOptions, "muon": MuonOptions}
