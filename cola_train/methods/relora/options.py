"""ReLoRA's options: when factors are merged, and what the learning rate does then."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from cola_train.config.fields import Fraction, NaturalInt, PositiveInt
from cola_train.methods.lora.options import LoraOptions
from cola_train.methods.options import Run
from cola_train.methods.recipe import Recipe, by_size
from cola_train.parallel.topology import Topology

PRUNE_RATIO = 0.99  # arXiv 2307.05695
# By size: 60m and 350m of github.com/NamrataRShivagunde/low-rank-geometry (and 130m's rate), 1b of
# github.com/Guitaricet/relora. Other sizes were not published: their neighbours'.
CYCLES = ((1000, 100), (1000, 100), (5000, 200), (1000, 100), (1000, 100))  # merge_every, rewarm
RATES = (1e-3, 1e-3, 5e-4, 4e-4, 4e-4)
LEAST_CYCLES = 10  # of a run that is shorter than ten published ones; chosen


@dataclass(frozen=True)
class ReloraOptions(LoraOptions):
    """LoRA, of which W += alpha / r B A and begins anew again and again (arXiv 2307.05695)."""

    # steps between merges; null: as published for the model's size, or a tenth of a shorter run
    merge_every: PositiveInt | None = None
    # over which the learning rate rises again after a merge; null: as published for the model's
    # size, at most a tenth of merge_every
    rewarm_steps: NaturalInt | None = None
    # at a merge, of the factors' optimizer state: the smallest elements of each tensor become 0,
    # or random ones, or all
    prune: Literal["magnitude", "random", "reset"] = "magnitude"
    prune_ratio: Fraction | None = None  # share that becomes 0; null: 0.99

    implementation = "cola_train.methods.relora.layers:Relora"

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """The authors', where there is one for the size."""
        lr = by_size(RATES, size)
        return Recipe(lr=lr, warmup_steps=steps // 10, weight_decay=0.0, clip=1.0)

    def cycle(self, run: Run) -> tuple[int, int]:
        """Steps from one merge to the next, and those of them that re-warm."""
        every, rewarm = by_size(CYCLES, run.model.name)
        cycles = max(LEAST_CYCLES, ceil(run.train.steps / every))
        every = self.merge_every or ceil(run.train.steps / cycles)
        if self.rewarm_steps is not None:
            return every, self.rewarm_steps
        return every, min(rewarm, every // 10)

    def learning_rate(self, run: Run, step: int) -> float:
        """`optim.schedule` with a re-warm-up in each cycle but the first: from 0, linearly, to what
        the schedule has where the re-warm-up ends."""
        every, rewarm = self.cycle(run)
        before = (step - 1) % every  # steps of this cycle
        if step <= every or before >= rewarm:
            return super().learning_rate(run, step)
        end = min(step - before + rewarm, run.train.steps)
        return before / rewarm * super().learning_rate(run, end)

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        every, rewarm = self.cycle(run)
        steps, given = run.train.steps, self.merge_every is not None
        if given and every >= steps:
            yield (
                f"method.merge_every: {every} leaves no step after the first merge, train.steps is "
                f"{steps}; lower it, or use method=lora, which never merges"
            )
        elif rewarm >= every:
            yield (
                f"method.rewarm_steps: {rewarm} must be less than method.merge_every ({every}), or "
                "the learning rate never rises to the schedule's; lower it"
            )
        elif given and 0 < steps % every <= rewarm:
            yield (
                f"method.merge_every: {every} makes the run end while the learning rate re-warms "
                f"({steps % every} of {rewarm} steps after the last merge); choose a divisor of "
                f"train.steps ({steps})"
            )
        if self.prune == "reset" and self.prune_ratio is not None:
            yield (
                f"method.prune_ratio: {self.prune_ratio} has no effect with method.prune=reset, "
                "which zeroes all; leave it out, or use method.prune=magnitude or random"
            )
