"""Figures of one step of an engine: some from before it, some from after."""

from collections.abc import Iterable, Sequence
from itertools import islice
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
from cola_train.health.factors import NAMES, Norms, Updates, factors


class Examination:
    """Looks at a step without an effect on it: nothing that the step reads is changed, generators
    of random numbers neither. All processes make each call together.

    Blocks are dealt out to processes: each computes the figures of its own, of its own batch.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self.options, self.engine = config.health, engine
        self.compiled = compiled_on(engine.device, config)
        self.factors = factors(engine.weights().names())  # what their names begin with
        self.norms = {start: Norms() for start in self.factors.values()}

    @torch.no_grad()
    def begin(self, batches: Sequence[Batch]) -> None:
        """Before the step over these micro-batches."""
        some = [batch.to(self.engine.device) for batch in self._some(batches)]
        self.activations = Activations(self.options.alpha, self._mine)
        self.activations.look(self.engine.module, some, self.compiled)
        names = [f"{start}_{factor}" for start in self.factors.values() for factor in "AB"]
        self.updates = Updates(self.engine.weights(), names)
        self.engine.watches_gradients = True

    @torch.no_grad()
    def figures(self) -> Figures:
        """After it, the same on every process."""
        self.engine.watches_gradients = False
        of_mine = self.activations.figures() | self._norms()
        values = distributed.sum_over_ranks(of_mine.values())
        found = dict(zip(of_mine, values, strict=True)) | self._updates() | self._gradients()
        del self.activations, self.updates
        return found

    def _some(self, batches: Sequence[Batch]) -> Iterable[Batch]:
        """As many as have `health.tokens`, one at least: whole, as kernels are ready for them."""
        return islice(batches, -(-self.options.tokens // batches[0].inputs.numel()))

    def _mine(self, block: int) -> bool:
        return block % distributed.world_size() == distributed.rank()

    def _norms(self) -> Figures:
        """Of this process's factors; of others' 0."""
        weights = self.engine.weights()
        found: dict[tuple[str, str, int], Any] = {}
        for (projection, block), start in self.factors.items():
            A, B = (weights.full(f"{start}_{factor}") for factor in "AB")  # all processes call
            mine: dict[str, Any] = self.norms[start].figures(A, B) if self._mine(block) else {}
            found |= {(name, projection, block): mine.get(name, 0.0) for name in NAMES}
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
