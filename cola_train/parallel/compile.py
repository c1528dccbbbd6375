"""torch.compile, block by block: all blocks share one compiled graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cola_train.model.context import AttentionContext
from cola_train.model.llama import Llama

Forward = Callable[[Tensor, AttentionContext], Tensor]
When = Callable[[AttentionContext], bool]


def uncached(context: AttentionContext) -> bool:
    """With a cache each token's shapes are new ones, and would be compiled anew."""
    return context.cache is None


def compile_blocks(model: Llama, when: When = uncached, **options: Any) -> None:
    """Compile each block's forward in place; parameter names stay as they are.

    Sharding's hooks run around `forward`, outside of what is compiled.

    when: which calls are; others run as usual. options: of torch.compile.
    """
    for block in model.layers:
        compiled = torch.compile(block.forward, fullgraph=True, **options)
        block.forward = partial(_forward, block.forward, compiled, when)


def _forward(
    usual: Forward, compiled: Forward, when: When, x_BTD: Tensor, context: AttentionContext
) -> Tensor:
    return (compiled if when(context) else usual)(x_BTD, context)
