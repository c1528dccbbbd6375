"""The storage through which torch.distributed.checkpoint (DCP) writes and reads a checkpoint.

Reading can run no code: JSON and safetensors hold data and nothing else, and no pickle is ever
opened. DCP's default storage unpickles its `.metadata`. Its Hugging Face storage does not, but it
builds each file in memory and reads it back for a checksum; here both happen as the bytes go out.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from cola_train.checkpoint.files import (
    STATE,
    TENSORS,
    Manifest,
    first_few,
    newest_first,
    read_json,
    remove,
    remove_unfinished,
    write_file,
    write_manifest,
)
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.checkpoint.tensor_file import DTYPE_NAMES, DTYPES, safetensors
from cola_train.errors import UserError
from cola_train.files import sync_folder

_Place = tuple[str, str]  # a file, and a tensor's name in it


class _PlansAsGiven:
    """The steps of DCP's storage interfaces in which this storage has nothing to do."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


# ---------------------------------------------------------------------------------- writing


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    ordered = dict(sorted(tensors.items(), key=lambda pair: -pair[1].element_size()))
    return safetensors({name: (t.dtype, t.shape) for name, t in ordered.items()}, ordered.values())


class Owner(Protocol):
    """Who may write into a folder of checkpoints."""

    def check(self) -> None:
        """Raises TrainingError, on rank 0, if the folder is another's by now."""
        ...

    def published(self, step: int) -> None:
        """Told, on rank 0, of each checkpoint that is whole and visible."""
        ...


class Anyone:
    """No other process writes there."""

    def check(self) -> None:
        pass

    def published(self, step: int) -> None:
        pass


class CheckpointWriter(_PlansAsGiven, StorageWriter):
    """Writes checkpoint folder `path`: hidden while it grows, renamed when it is whole.

    DCP passes an error of any process on to all, so every step here may simply raise.
    """

    def __init__(
        self,
        path: Path,
        *,
        writer_id: str,
        rank: int,
        world_size: int,
        step: int,
        metric: float | None,
        state: str,
        owner: Owner,
    ) -> None:
        self.path, self.owner = path, owner
        # A process that SLURM gave up may still be writing the same step: see its own folder fail,
        # never mix the files of two.
        self.partial = path.with_name(f".{path.name}.{writer_id}.partial")
        self.rank, self.world_size = rank, world_size
        self.step, self.metric, self.state = step, metric, state

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.owner.check()
            remove_unfinished(self.path.parent)
            self.partial.mkdir()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        names = {}
        for item in plan.items:
            key, offset = item.index.fqn, item.index.offset
            # a FlatShard has several parts in one file
            names[item.index] = key if key not in tensors else f"{key}@{tuple(offset or ())}"
            data = planner.resolve_data(item)
            assert isinstance(data, Tensor)
            tensors[names[item.index]] = data
        written = []
        if tensors:
            file = f"rank-{self.rank:05d}.safetensors"
            entry = write_file(self.partial / file, _safetensors(tensors))
            written = [
                WriteResult(index, entry.bytes, (file, entry, name))
                for index, name in names.items()
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, with what every process wrote: add the JSON files and make it visible."""
        written = [result for of_rank in results for result in of_rank]
        files = dict(result.storage_data[:2] for result in written)
        for name, entry in files.items():
            if (self.partial / name).stat().st_size != entry.bytes:
                raise OSError(f"{name} is not whole; all processes must share this folder")
        places = {r.index: (r.storage_data[0], r.storage_data[2]) for r in written}
        for name, text in ((TENSORS, json.dumps(_index(metadata, places))), (STATE, self.state)):
            files[name] = write_file(self.partial / name, [text.encode()])
        others = newest_first(self.path.parent)
        sequence = 1 + max((manifest.sequence for _, manifest in others if manifest), default=0)
        manifest = Manifest(self.step, self.metric, self.world_size, sequence, files)
        write_manifest(self.partial, manifest)
        sync_folder(self.partial)
        self._publish()

    def _publish(self) -> None:
        # Who claims the folder after this check deletes `partial` before looking for checkpoints:
        # the rename below comes before that, and this one is found, or it fails.
        self.owner.check()
        # Between the two renames an older checkpoint of this step is still found, as `.replaced`.
        replaced = self.path.with_name(f"{self.path.name}.replaced")
        if self.path.exists():
            if replaced.exists():
                remove(replaced)
            self.path.rename(replaced)
        self.partial.rename(self.path)
        sync_folder(self.path.parent)
        if replaced.exists():
            remove(replaced)

    def discard(self) -> None:
        """Delete what a failed save has written, which may be what filled the disk."""
        shutil.rmtree(self.partial, ignore_errors=True)


def _index(metadata: Metadata, places: Mapping[MetadataIndex, _Place]) -> dict[str, Any]:
    """tensors.json: for each tensor its dtype, global shape and parts (offset, shape, file; and its
    name in that file, if it is not the tensor's)."""
    index = {}
    for key, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        parts = []
        for chunk in tensor.chunks:
            file, name = places[MetadataIndex(key, chunk.offsets)]
            part = {"offset": list(chunk.offsets), "shape": list(chunk.sizes), "file": file}
            parts.append(part if name == key else part | {"name": name})
        index[key] = {
            "dtype": DTYPE_NAMES[tensor.properties.dtype],
            "shape": list(tensor.size),
            "parts": parts,
        }
    return index


# ---------------------------------------------------------------------------------- reading


class CheckpointReader(_PlansAsGiven, StorageReader):
    """Reads checkpoint folder `path`: of each file only the slices this process needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[MetadataIndex, _Place] = {}
        self.tensors: dict[str, TensorStorageMetadata] = {}

    def open(self, tensors: Mapping[str, Tensor | FlatShard], whole: bool = True) -> None:
        """Read tensors.json. Raises UserError if it is damaged, or if `tensors`, which are to be
        filled, differ from those saved in name, shape or dtype.

        whole: the checkpoint holds nothing else.
        """
        try:
            for key, saved in read_json(self.path / TENSORS).items():
                chunks = []
                for part in saved["parts"]:
                    offset, shape = torch.Size(part["offset"]), torch.Size(part["shape"])
                    chunks.append(ChunkStorageMetadata(offset, shape))
                    place = str(part["file"]), str(part.get("name", key))
                    self.places[MetadataIndex(key, offset)] = place
                properties = TensorProperties(dtype=DTYPES[saved["dtype"]])
                self.tensors[key] = TensorStorageMetadata(
                    properties, torch.Size(saved["shape"]), chunks
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path / TENSORS}: damaged ({error!r})") from None
        if not whole:
            self.tensors = {key: saved for key, saved in self.tensors.items() if key in tensors}
        if problems := self._mismatches(tensors):
            raise UserError(
                f"{self.path} does not fit this run.",
                *problems,
                "Most likely model, method or optimizer differ from those it was saved with "
                "(config.yaml in its run's folder): use the same, or resume=never.",
            )

    def _mismatches(self, tensors: Mapping[str, Tensor | FlatShard]) -> list[str]:
        missing = sorted(tensors.keys() - self.tensors.keys())
        unexpected = sorted(self.tensors.keys() - tensors.keys())
        different = [
            f"{key} ({tuple(saved.size)} {saved.properties.dtype}, "
            f"here {tuple(tensors[key].shape)} {tensors[key].dtype})"
            for key, saved in sorted(self.tensors.items())
            if key in tensors
            and (saved.size, saved.properties.dtype) != (tensors[key].shape, tensors[key].dtype)
        ]
        return [
            f"{what}: {first_few(names)}"
            for what, names in (
                ("not in the checkpoint", missing),
                ("in the checkpoint only", unexpected),
                ("of another shape or dtype", different),
            )
            if names
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        from safetensors import SafetensorError, safe_open  # a step is timed without it

        items_of: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            file, _ = self.places[item.storage_index]
            items_of.setdefault(file, []).append(item)
        for name, items in items_of.items():
            try:
                with safe_open(self.path / name, framework="pt") as opened:
                    for item in items:
                        self._read(opened, item, planner)
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(f"{self.path / name}: damaged ({error})") from None
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, file: Any, item: ReadItem, planner: LoadPlanner) -> None:
        _, name = self.places[item.storage_index]
        target = planner.resolve_tensor(item).detach()
        if math.prod(item.lengths) == 0:
            return
        begins_and_lengths = zip(item.storage_offsets, item.lengths, strict=True)
        where = tuple(slice(begin, begin + length) for begin, length in begins_and_lengths)
        saved = file.get_slice(name)[where] if where else file.get_tensor(name)
        if (saved.shape, saved.dtype) != (target.shape, target.dtype):
            raise ValueError(f"{name} is not the shape or dtype that {TENSORS} says")
        target.copy_(saved)
        planner.commit_tensor(item, target)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(dict(self.tensors))

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        pass
