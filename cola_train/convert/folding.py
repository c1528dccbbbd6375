"""A checkpoint's weights, made those of the plainest model that computes the same, block by block:
never more of it is in memory, and nothing of its optimizer."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from cola_train.checkpoint.checkpointer import load_part
from cola_train.checkpoint.tensor_file import Kind
from cola_train.config.schema import Config
from cola_train.engines.base import persistent_buffers
from cola_train.methods.base import build_method
from cola_train.model.llama import build_model
from cola_train.model.padding import remove_padding

BLOCK = re.compile(r"layers\.\d+\.")
CPU = torch.device("cpu")


class FoldedWeights:
    """plain: the config of the model that they are of (`MethodOptions.folded`). kinds: dtype and
    shape of each, by our names, in the order in which iterating gives them."""

    def __init__(self, checkpoint: Path, config: Config) -> None:
        self.checkpoint = checkpoint
        self.plain = replace(config, method=config.method.folded)
        self.kinds = kinds_of(self.plain)
        self._saved, self._method = kinds_of(config), build_method(config, CPU)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and weight, on the CPU.

        Raises:
            UserError: the checkpoint does not hold what it should, or is damaged.
        """
        for block, names in groupby(self.kinds, block_of):
            folded = self._folded(block)
            yield from ((name, folded.pop(name)) for name in names)

    def _folded(self, block: str) -> dict[str, Tensor]:
        tensors = {
            name: torch.empty(shape, dtype=dtype)
            for name, (dtype, shape) in self._saved.items()
            if block_of(name) == block
        }
        load_part(self.checkpoint, {f"model.{name}": each for name, each in tensors.items()})
        return self._method.fold(tensors)


def kinds_of(config: Config) -> dict[str, Kind]:
    """Dtype and shape of what a checkpoint holds of a config's model, by name."""
    model = build_model(config, build_method(config, CPU), CPU)
    remove_padding(model)
    tensors = {**dict(model.named_parameters()), **dict(persistent_buffers(model))}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def block_of(name: str) -> str:
    """The beginning of its block's names; outside of blocks, its own."""
    found = BLOCK.match(name)
    return found[0] if found else name
