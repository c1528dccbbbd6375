"""Recomputation policies: which activations the backward pass computes again."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cola_train.config import RecomputeConfig
from cola_train.model import Llama


def apply_recompute(model: Llama, config: RecomputeConfig) -> None:
    """Change the blocks' forward in place: same modules, same state dict, same losses.

    `none` keeps everything; `full` keeps each block's input and recomputes the rest.
    """
    if config.name == "none":
        return
    for block in model.layers:
        block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def recomputed(*args: Any) -> Tensor:
        # non-reentrant, so that it composes with FSDP2 and torch.compile
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

    return recomputed
