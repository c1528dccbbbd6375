"""Recomputation policies: what the backward pass keeps, and what it computes again.

docs/recomputation.md has the picture, and what each policy costs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from cola_kernels.names import RANK_R_OPS, RESIDUAL_OPS
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cola_train.config.schema import RecomputeConfig
from cola_train.model.llama import Llama

# Names of the ops whose outputs are kept; all others of a block run again.
ATTENTION = {
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
}
COLA_M = RANK_R_OPS | RESIDUAL_OPS  # the residual stream: it is kept anyway, as the next input
KEPT = {"cola_m": COLA_M, "light": COLA_M | ATTENTION}


def apply_recompute(model: Llama, config: RecomputeConfig) -> None:
    """Change the blocks' forward in place: same modules, same state dict, same losses.

    `none` keeps everything. `full` keeps each block's input and recomputes the rest. `cola_m`
    keeps the residual stream before each half of a block and the rank-r vectors (arXiv
    2502.10940, section 4); `light` keeps the attention's output too, and so does not run
    attention twice.
    """
    if config.name == "none":
        return
    for block in model.layers:
        if config.name == "full":
            block.forward = _checkpointed(block.forward)
            continue
        contexts = partial(
            create_selective_checkpoint_contexts, partial(_policy, KEPT[config.name])
        )
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
