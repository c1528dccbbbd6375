"""How a step runs on one process or many. The loop sees only this protocol.

A new engine is one module here, one entry in ENGINES, one YAML file, one test.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cola_train.config import Config
    from cola_train.data.loader import Batch
    from cola_train.methods import Method
    from cola_train.model import Llama


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every process."""

    loss: float  # mean over the global batch's predicted tokens, nats
    grad_norm: float  # global, before clipping
    tokens: int  # predicted tokens of the global batch
    skipped: bool  # a non-finite loss or gradient: weights and optimizer state are untouched


class Engine(Protocol):
    """Owns the sharded model and its optimizer."""

    def train_step(self, batches: "list[Batch]", lr: float) -> StepResult:
        """One optimizer step over this process's micro-batches of the global batch."""
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

    def tensors(self) -> dict[str, Tensor]:
        """Model and optimizer state by name, for a checkpoint to save or to fill in place."""
        ...


def build_engine(
    config: "Config", model: "Llama", method: "Method", device: torch.device
) -> Engine:
    """Compile and shard the (meta) model, give it weights, and pair it with its optimizer."""
    from cola_train.engines.fsdp import FSDPEngine

    engines: dict[str, type[FSDPEngine]] = {"fsdp": FSDPEngine}
    return engines[config.engine.name](config, model, method, device)
