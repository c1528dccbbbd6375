"""A process's part of a tensor that is cut without regard to its rows, as DeepSpeed's ZeRO does."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor, Shard

Box = tuple[torch.Size, torch.Size]  # offset and shape


@dataclass(frozen=True)
class FlatShard:
    """Elements `start` to `start + n` of a tensor of shape `shape`, in row-major order.

    Checkpoints know boxes only: this shows DCP the few boxes it consists of, through the hooks
    (`__create_write_items__`, `__create_chunk_list__`) by which DTensor does.

    local: (n,), contiguous; the elements themselves, to be read and filled in place.
    """

    shape: torch.Size
    start: int
    local: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    def parts(self) -> dict[torch.Size, Tensor]:
        """The boxes, as views of `local` by their offset in the whole tensor."""
        parts, at = {}, 0
        for offset, shape in _boxes(tuple(self.shape), self.start, self.start + len(self.local)):
            parts[offset] = self.local[at : at + math.prod(shape)].view(shape)
            at += math.prod(shape)
        return parts

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(offset, part.shape), properties, self.shape
                ),
            )
            for offset, part in self.parts().items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offset, part.shape) for offset, part in self.parts().items()]


def share_of_replica(tensor: DTensor) -> DTensor | FlatShard:
    """Of rows that several processes hold alike, the share that this one is to save, so that no
    process copies and writes what another does. Other tensors as they are."""
    replicas, index = 1, 0
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            size = tensor.device_mesh.size(dim)
            index = index * size + tensor.device_mesh.get_local_rank(dim)
            replicas *= size
        elif type(placement) is not Shard or placement.dim != 0:
            return tensor
    if replicas == 1 or sum(placement.is_shard() for placement in tensor.placements) > 1:
        return tensor
    local = tensor.to_local().detach().reshape(-1)
    (chunk,) = tensor.__create_chunk_list__()
    size = -(-len(local) // replicas)
    begin = min(index * size, len(local))
    row = math.prod(tensor.shape[1:])
    start = (chunk.offsets[0] * row if tensor.ndim else 0) + begin
    return FlatShard(tensor.shape, start, local[begin : begin + size])


def _boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The boxes that elements `start` to `stop` of a tensor consist of, in their order: the end of
    a row, whole rows, the beginning of a row."""
    if start == stop:
        return
    if len(shape) <= 1:
        yield torch.Size([start][: len(shape)]), torch.Size([stop - start][: len(shape)])
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield torch.Size([first, *[0] * len(shape[1:])]), torch.Size([last - first, *shape[1:]])
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: tuple[int, ...], i: int, start: int, stop: int) -> Iterator[Box]:
    begin = i * math.prod(shape[1:])
    for offset, size in _boxes(shape[1:], start - begin, stop - begin):
        yield torch.Size([i, *offset]), torch.Size([1, *size])
