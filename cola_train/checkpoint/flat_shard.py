"""A process's part of a tensor that is cut without regard to its rows, as DeepSpeed's ZeRO does, or
that is stored with padding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    """Elements `start` to `start + n` of a tensor, in row-major order.

    Checkpoints know boxes only: this shows DCP the few boxes it consists of, through the hooks
    (`__create_write_items__`, `__create_chunk_list__`) by which DTensor does.

    shape: of the tensor in checkpoints.
    local: (n,), contiguous; the elements themselves, to be read and filled in place.
    stored: the tensor's shape where it is larger than `shape`: `start` and `n` count its padding,
        which is at each axis' end and in no box.
    replica: number of this process among so many that hold the same; see `share`.
    """

    shape: torch.Size
    start: int
    local: Tensor
    stored: torch.Size | None = None
    replica: tuple[int, int] = (0, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    def parts(self) -> dict[torch.Size, Tensor]:
        """The boxes, as views of `local` by their offset in the whole tensor."""
        parts, at = {}, 0
        stored = tuple(self.stored or self.shape)
        for offset, shape in _boxes(stored, self.start, self.start + len(self.local)):
            box = self.local[at : at + math.prod(shape)].view(shape)
            at += math.prod(shape)
            for dim, size in enumerate(self.shape):  # without padding
                box = box.narrow(dim, 0, min(box.shape[dim], max(0, size - offset[dim])))
            if box.numel() or not self.shape.numel():
                parts[offset] = box
        return parts

    def share(self) -> "FlatShard":
        """Of what several processes hold alike, the part that this one is to save, so that no
        process copies and writes what another does."""
        index, replicas = self.replica
        size = -(-len(self.local) // replicas)
        begin = min(index * size, len(self.local))
        local = self.local[begin : begin + size]
        return replace(self, start=self.start + begin, local=local, replica=(0, 1))

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


def flat_shard(tensor: DTensor) -> FlatShard | None:
    """This process's rows of it, in place; None if it is cut otherwise than once and by rows, or if
    they are not contiguous."""
    replicas, index = 1, 0
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            size = tensor.device_mesh.size(dim)
            index = index * size + tensor.device_mesh.get_local_rank(dim)
            replicas *= size
        elif type(placement) is not Shard or placement.dim != 0:
            return None
    if sum(placement.is_shard() for placement in tensor.placements) > 1:
        return None
    local = tensor.to_local().detach()
    if not local.is_contiguous():
        return None
    (chunk,) = tensor.__create_chunk_list__()
    start = chunk.offsets[0] * math.prod(tensor.shape[1:]) if tensor.ndim else 0
    return FlatShard(tensor.shape, start, local.view(-1), replica=(index, replicas))


def share_of_replica(tensor: DTensor) -> DTensor | FlatShard:
    """Of rows that several processes hold alike, the share that this one is to save. Other tensors
    as they are."""
    shard = flat_shard(tensor)
    return tensor if shard is None or shard.replica[1] == 1 else shard.share()


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
