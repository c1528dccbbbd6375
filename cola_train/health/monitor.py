"""What a run's loop calls: figures before and after a step that is looked at."""

from collections.abc import Iterable, Sequence
from itertools import islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine, trainable
from cola_train.hardware import compiled_on
from cola_train.health import Figures
from cola_train.health.activations import Activations
from cola_train.health.alarms import Alarms
from cola_train.health.factors import NAMES, Norms, Updates, factors
from cola_train.run.state import RunState
from cola_train.run.tracking import Tracker


class Health:
    """Looks at every step that `health.every` names, without an effect on what is trained.

    Blocks are dealt out to processes: each computes the figures of its own, of its own batch.
    """

    def __init__(self, config: Config, state: RunState, tracker: Tracker) -> None:
        self.options, self.tracker, self.state = config.health, tracker, state
        self.engine: Engine = state.engine
        self.compiled = compiled_on(state.engine.device, config)
        self.blocks = config.model.n_layers
        self.factors: dict[tuple[str, int], str] = {}
        self.norms: dict[str, Norms] = {}
        self.alarms = Alarms(warm_up=config.optim.warmup(config.train.steps))
        self.activations: Activations | None = None  # of the step that is looked at
        if self.options.every:
            self.factors = factors(self.engine.weights().names())

    @torch.no_grad()
    def before(self, batches: Sequence[Batch]) -> None:
        """Before a step over these micro-batches. All processes call it together."""
        every, step = self.options.every, self.state.step + 1
        if not every or step % every:
            return
        self.state.watchdog.advance(f"the health of step {step}")
        some = [batch.to(self.engine.device) for batch in self._some(batches)]
        self.activations = Activations(self.options.alpha, self._mine)
        self.activations.look(self.engine.module, some, self.compiled)
        names = [f"{start}_{factor}" for start in self.factors.values() for factor in "AB"]
        self.updates = Updates(self.engine.weights(), names)
        self.engine.watches_gradients = True

    @torch.no_grad()
    def after(self) -> None:
        """After the step, before the method changes weights: logs its figures, and warns."""
        if self.activations is None:
            return
        seen, self.activations = self.activations, None
        self.engine.watches_gradients = False
        of_mine = seen.figures() | self._norms()
        values = distributed.sum_over_ranks(of_mine.values())
        found = dict(zip(of_mine, values, strict=True)) | self._updates() | self._gradients()
        step, tokens = self.state.step, self.state.progress.tokens
        self.tracker.health(step, tokens, self._by_figure(found))
        for warning in self.alarms.new(step, found, self.factors):
            self.tracker.say(f"step {step}: {warning}")
        self.state.watchdog.advance(f"step {step + 1}, after its health")

    def _some(self, batches: Sequence[Batch]) -> Iterable[Batch]:
        """As many as have `health.tokens`, one at least: whole, as kernels are ready for them."""
        return islice(batches, -(-self.options.tokens // batches[0].inputs.numel()))

    def _mine(self, block: int) -> bool:
        return block % distributed.world_size() == distributed.rank()

    def _norms(self) -> Figures:
        """Of this process's factors; of others' 0."""
        weights, found = self.engine.weights(), {}
        for (projection, block), start in self.factors.items():
            A, B = (weights.full(f"{start}_{factor}") for factor in "AB")  # all processes call
            norms = self.norms.setdefault(start, Norms())
            figures: dict[str, Any] = norms.figures(A, B) if self._mine(block) else {}
            for name in NAMES:
                found[name, projection, block] = figures.get(name, 0.0)
        return {key: float(value) for key, value in found.items()}

    def _updates(self) -> Figures:
        ratios = self.updates.ratios(self.engine.weights())
        return {
            (f"update_{factor.lower()}", projection, block): ratios[f"{start}_{factor}"]
            for (projection, block), start in self.factors.items()
            for factor in "AB"
        }

    def _gradients(self) -> Figures:
        of_block: dict[int, list[str]] = {}
        for name, _ in trainable(self.engine.model):
            if name.startswith("layers."):
                of_block.setdefault(int(name.split(".")[1]), []).append(name)
        norms: dict[int, Tensor] = {
            block: self.engine.gradient_norm(names) for block, names in of_block.items()
        }
        return {("grad_norm", "", block): float(norm) for block, norm in norms.items()}

    def _by_figure(self, found: Figures) -> dict[str, Any]:
        """As metrics.jsonl has them (docs/health.md)."""
        figures: dict[str, Any] = {}
        for (figure, projection, block), value in found.items():
            if projection:
                by_block = figures.setdefault(figure, {}).setdefault(projection, [])
            else:
                by_block = figures.setdefault(figure, [])
            by_block.extend([None] * (self.blocks - len(by_block)))
            by_block[block] = value if isfinite(value) else None
        return figures
