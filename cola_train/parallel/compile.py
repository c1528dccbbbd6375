"""torch.compile, block by block: all blocks share one compiled graph."""

import torch

from cola_train.model.llama import Llama


def compile_blocks(model: Llama) -> None:
    """Compile each block's forward in place; parameter names stay as they are.

    Sharding's hooks run around `forward`, outside of what is compiled.
    """
    for block in model.layers:
        block.forward = torch.compile(block.forward, fullgraph=True)
