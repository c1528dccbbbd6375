"""What engines hold with padding, as the rest of the program has it: without."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor
from torch.distributed.tensor import DTensor

from cola_train.checkpoint.flat_shard import FlatShard, flat_shard
from cola_train.methods.base import Weights
from cola_train.model.padding import Padding

# `paddings`: of the padded parameters, by name; see `model.padding`


def without_padding(
    tensors: Mapping[str, Tensor | FlatShard], paddings: Mapping[str, Padding]
) -> dict[str, Tensor | FlatShard]:
    """A state dict (see `Engine.state_dict`) for checkpoints: no copies, so what fills these fills
    `tensors`, and leaves the padding at zero."""
    return {
        key: _cut(tensor, padding)
        if (of := paddings.get(_parameter(key))) and (padding := of.of_state(tensor.shape))
        else tensor
        for key, tensor in tensors.items()
    }


def _parameter(key: str) -> str:
    """`model.<parameter>` or `optimizer.<parameter>.<key>` -> the parameter's name."""
    kind, _, name = key.partition(".")
    return name if kind == "model" else name.rpartition(".")[0]


def _cut(tensor: Tensor | FlatShard, padding: Padding) -> Tensor | FlatShard:
    shard = flat_shard(tensor) if isinstance(tensor, DTensor) else tensor
    assert shard is not None, "a padded weight is cut by rows alone, and contiguous"
    if isinstance(shard, FlatShard):
        return replace(shard, shape=padding.shape, stored=padding.stored)
    return padding.cut(shard)


class UnpaddedWeights:
    """`methods.base.Weights` over others that have padded ones."""

    def __init__(self, padded: Weights, paddings: Mapping[str, Padding]) -> None:
        self.padded, self.paddings = padded, paddings

    def names(self) -> list[str]:
        return self.padded.names()

    def full(self, name: str) -> Tensor:
        whole, padding = self.padded.full(name), self.paddings.get(name)
        return padding.cut(whole).contiguous() if padding else whole

    def sample(self, name: str, most: int) -> Tensor:
        return self.padded.sample(name, most)  # its zeros are among them

    def assign(self, name: str, whole: Tensor) -> None:
        padding = self.paddings.get(name)
        self.padded.assign(name, padding.pad(whole) if padding else whole)

    def change_state(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        padding = self.paddings.get(name)

        def padded(whole: Tensor) -> Tensor:
            assert padding is not None
            return padding.pad(change(padding.cut(whole).contiguous()))

        self.padded.change_state(name, padded if padding else change)
