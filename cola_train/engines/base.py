"""How a step runs on one process or many. The loop sees only this protocol.

A new engine is one module here, one entry in ENGINES, one YAML file, one test.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.methods.base import implementation

if TYPE_CHECKING:
    from cola_train.config.schema import Config
    from cola_train.data.loader import Batch
    from cola_train.methods.base import Method
    from cola_train.model.llama import Llama


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every process."""

    loss: float  # mean over the global batch's predicted tokens, nats
    grad_norm: float  # global, before clipping
    tokens: int  # predicted tokens of the global batch
    skipped: bool  # not finite, or a spike: weights and optimizer state are untouched


class Engine(Protocol):
    """Owns the sharded model and its optimizer."""

    def __init__(
        self, config: "Config", model: "Llama", method: "Method", device: torch.device
    ) -> None:
        """Shard the (meta) model, give it weights, and pair it with its optimizer. Collective."""
        ...

    def train_step(
        self, batches: "list[Batch]", lr: float, max_loss: float = math.inf
    ) -> StepResult:
        """One optimizer step over this process's micro-batches of the global batch; skipped if
        loss or gradient are not finite, or the loss is above `max_loss`."""
        ...

    def after_step(self, step: int) -> None:
        """What the method does between steps."""
        ...

    def evaluate(self, batch: "Batch") -> tuple[Tensor, int]:
        """Summed loss (fp32 scalar, nats) and number of predicted tokens of a local batch."""
        ...

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) logits. All processes call it together, with the same tokens."""
        ...

    def tensors(self) -> Mapping[str, Tensor | FlatShard]:
        """Model and optimizer state by name, for a checkpoint to save or to fill in place.

        Named and shaped the same under every engine: `model.<parameter>` the fp32 weight,
        `optimizer.<parameter>.<key>` its state. The parts of each process as they lie, no copies
        where that can be: training stands still meanwhile. Collective.
        """
        ...

    def take(self, tensors: Mapping[str, Tensor | FlatShard]) -> None:
        """Go on from `tensors()` that a checkpoint has filled. Collective."""
        ...


def zero_state(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Undo what a step of size zero, which made the optimizer allocate its state, has counted."""
    for parameter in parameters:
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor):
                value.zero_()


def build_engine(
    config: "Config", model: "Llama", method: "Method", device: torch.device
) -> Engine:
    """Shard the (meta) model, give it weights, and pair it with its optimizer."""
    engine: Engine = implementation(config.engine.implementation)(config, model, method, device)
    return engine
