"""Recomputation policies: what the backward pass keeps, and what it computes again.

docs/recomputation.md has the picture, and what each policy costs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cola_train.model.llama import Llama


def apply_recompute(model: Llama, policy: str, kept_ops: Mapping[str, frozenset[str]]) -> None:
    """Change the blocks' forward in place: same modules, same state dict, same losses.

    policy: `none` keeps everything, `full` each block's input, and the rest is recomputed; another
        is the method's own, and keeps the residual stream before each half of a block and the
        outputs of `kept_ops[policy]`.
    """
    if policy == "none":
        return
    for block in model.layers:
        if policy == "full":
            block.forward = _checkpointed(block.forward)
            continue
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, kept_ops[policy]))
        for half in ("attend", "feed_forward"):
            setattr(block, half, _checkpointed(getattr(block, half), context_fn=contexts))


def _policy(kept: frozenset[str], _: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    keep = op.name() in kept
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(forward: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    def recomputed(*args: Any) -> Tensor:
        # non-reentrant, so that it composes with sharding and torch.compile
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return recomputed
