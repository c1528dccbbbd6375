"""torch.compile, block by block: all blocks share one compiled graph."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cola_train.model.context import AttentionContext
from cola_train.model.llama import Llama

Forward = Callable[[Tensor, AttentionContext], Tensor]


def compile_blocks(model: Llama) -> None:
    """Compile each block's forward in place; parameter names stay as they are.

    Sharding's hooks run around `forward`, outside of what is compiled. With a cache a block runs as
    it is: each token's shapes are new ones, and would be compiled anew.
    """
    for block in model.layers:
        block.forward = partial(
            _forward, block.forward, torch.compile(block.forward, fullgraph=True)
        )


def _forward(usual: Forward, compiled: Forward, x_BTD: Tensor, context: AttentionContext) -> Tensor:
    return (usual if context.cache is not None else compiled)(x_BTD, context)
