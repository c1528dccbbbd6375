"""Weights in safetensors files of limited size, with transformers' index of them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from torch import Tensor

from cola_train.checkpoint.files import write_file
from cola_train.checkpoint.tensor_file import Kind, safetensors
from cola_train.files import write_json

INDEX = "model.safetensors.index.json"


def size_of(kind: Kind) -> int:
    """In bytes."""
    dtype, shape = kind
    return dtype.itemsize * shape.numel()


def shards_of(kinds: Mapping[str, Kind], limit: int) -> dict[str, dict[str, Kind]]:
    """The files, and what is in each, in order: as much as `limit` bytes hold, or one weight."""
    shards: list[dict[str, Kind]] = []
    held = 0
    for name, kind in kinds.items():
        if not shards or held + size_of(kind) > limit:
            shards.append({})
            held = 0
        shards[-1][name] = kind
        held += size_of(kind)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    n = len(shards)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_shards(
    folder: Path, shards: Mapping[str, Mapping[str, Kind]], tensors: Iterable[Tensor]
) -> None:
    """Write the files, taking each tensor when its turn comes, and the index if there are several.

    Raises:
        OSError: the folder cannot be written.
    """
    left: Iterator[Tensor] = iter(tensors)
    for file, kinds in shards.items():
        pieces = safetensors(kinds, islice(left, len(kinds)), {"format": "pt"})
        write_file(folder / file, pieces)
    if len(shards) > 1:
        total = sum(size_of(kind) for kinds in shards.values() for kind in kinds.values())
        places = {name: file for file, kinds in shards.items() for name in kinds}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
