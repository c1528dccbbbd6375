"""What a run's loop calls around each step: the health of some of them, logged, and warnings."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.health import Figures
from cola_train.health.alarms import Alarms
from cola_train.health.examination import Examination
from cola_train.run.state import RunState
from cola_train.run.tracking import Tracker


class Health:
    """Looks at every step that `health.every` names; at none, if that is 0."""

    def __init__(self, config: Config, state: RunState, tracker: Tracker) -> None:
        self.state, self.tracker, self.every = state, tracker, config.health.every
        if self.every:
            self.examination = Examination(config, state.engine)
            self.alarms = Alarms(warm_up=config.optim.warmup(config.train.steps))

    def before(self, batches: Sequence[Batch]) -> None:
        """Before the next step, which is over these micro-batches."""
        if self.every and (self.state.step + 1) % self.every == 0:
            self.state.watchdog.advance(f"the health of step {self.state.step + 1}")
            self.examination.begin(batches)

    def after(self) -> None:
        """After a step, before the method changes weights."""
        step = self.state.step
        if not self.every or step % self.every:
            return
        found = self.examination.figures()
        warnings = [*self.alarms.new(step, found, self.examination.factors)]
        self.tracker.health(step, self.state.progress.tokens, by_figure(found), warnings)
        self.state.watchdog.advance(f"step {step + 1}, after the health of step {step}")


def by_figure(found: Figures) -> dict[str, Any]:
    """As metrics.jsonl has them (docs/health.md): figure -> projection, if it is of one -> values
    by block, None where there is none."""
    blocks = 1 + max(block for *_, block in found)
    figures: dict[str, Any] = {}
    for (figure, projection, block), value in found.items():
        of_all: list[float | None] = [None] * blocks
        if projection:
            by_block = figures.setdefault(figure, {}).setdefault(projection, of_all)
        else:
            by_block = figures.setdefault(figure, of_all)
        by_block[block] = value if isfinite(value) else None
    return figures
