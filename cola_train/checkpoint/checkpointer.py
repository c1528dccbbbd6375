"""Checkpoints of a run: saved while training goes on, found again, loaded on any process count.

`files.py` says what one looks like on disk, `storage.py` why reading it is safe.
"""

import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from cola_train.checkpoint.files import (
    MANIFEST,
    NAME,
    first_few,
    newest_first,
    read_state,
    remove,
    remove_unfinished,
    tensor_names,
    verify,
)
from cola_train.checkpoint.flat_shard import FlatShard, share_of_replica
from cola_train.checkpoint.planners import LoadPlanner, StagedPlanner
from cola_train.checkpoint.storage import Anyone, CheckpointReader, CheckpointWriter, Owner
from cola_train.errors import TrainingError, UserError
from cola_train.progress import say

__all__ = ["Checkpointer", "load_part", "newest_good", "read_state", "verify"]

T = TypeVar("T")

# Without a process group, as in tools, DCP warns of that at each save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Checkpointer:
    """Saves into and loads from `folder`, which all processes share; keeps the newest `keep`.

    keep_best: also keep the one with the lowest metric.
    asynchronous: write in a background thread, on a gloo group of its own.
    owner: asked before anything in the folder is published or deleted.

    Every method is collective: all processes call it with the same arguments, or, for `tensors`,
    with the same keys. An error of one process is raised on all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keep_best: bool,
        asynchronous: bool,
        owner: Owner | None = None,
    ) -> None:
        assert keep >= 1
        self._owner = owner or Anyone()
        self.folder, self.keep, self.keep_best = folder, keep, keep_best
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._rank = dist.get_rank() if self._group else 0
        self._world_size = dist.get_world_size() if self._group else 1
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._under_way: Future[None] | None = None
        self._staged: dict[str, Tensor] = {}
        self._writer_id = self._on_every_rank(self._begin)[0]

    def _begin(self) -> str:
        if self._rank == 0:  # after our claim: what an earlier process was writing vanishes
            self._owner.check()
            remove_unfinished(self.folder)
        return uuid.uuid4().hex[:8]

    def reserve(self, tensors: Mapping[str, Tensor | FlatShard]) -> None:
        """Allocate, in the background, the memory into which saves of `tensors` copy: filling fresh
        memory takes several times as long, and would make the first save block longer."""
        if self._thread is not None:
            self.wait()
            parts = {key: _local(_to_save(tensor)) for key, tensor in tensors.items()}
            self._under_way = self._thread.submit(self._allocate, parts)

    def _allocate(self, parts: dict[str, Tensor]) -> None:
        with suppress(MemoryError, RuntimeError):  # of one process; its saves try again
            self._staged = {key: _cpu_memory(local).zero_() for key, local in parts.items()}

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor | FlatShard],
        state: Mapping[str, Any],
        metric: float | None = None,
    ) -> Future[None]:
        """Save `tensors` (DTensors, FlatShards, or plain ones that are the same on every process),
        and rank 0's `state` (JSON values) under `step`.

        Returns when they are copied to the CPU, so training may change them; the rest happens in
        the background, until the returned future is done. A checkpoint of the same step is
        replaced once the new one is whole. Waits for the save under way, and raises what that one
        raised (see `wait`).
        """
        self.wait()
        writer = CheckpointWriter(
            self.folder / f"step-{step:08d}",
            writer_id=self._writer_id,
            rank=self._rank,
            world_size=self._world_size,
            step=step,
            metric=metric if metric is not None and math.isfinite(metric) else None,
            state=json.dumps(dict(state), indent=1),
            owner=self._owner,
        )
        live = {key: _to_save(tensor) for key, tensor in tensors.items()}
        # Into the memory of the save before, or `reserve`'s.
        self._staged = staged = {
            key: _copy_to_cpu(_local(tensor), self._staged.get(key)) for key, tensor in live.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._thread is None:
            self._save(writer, live, staged)
            done: Future[None] = Future()
            done.set_result(None)
            return done
        self._under_way = self._thread.submit(self._save, writer, live, staged)
        return self._under_way

    def wait(self) -> None:
        """Return when the save under way is whole and visible.

        Raises UserError on every process if the folder cannot be written or the disk is full; the
        checkpoints saved before are intact.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Wait as `wait` does, and end the thread. Before the process group ends, errors or not."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def find(self, resume: str, option: str = "resume") -> Path | None:
        """The checkpoint folder to resume from, verified by all processes together.

        resume: "never" (None), "auto" (the newest good one here, or None), or a path to a
        checkpoint or to a folder of them. Damaged ones are named on stderr and passed over.
        option: that it is the value of.
        Raises UserError if `resume` is a path with no good checkpoint.
        """
        self.wait()
        if resume == "never":
            return None
        auto = resume == "auto"
        start = self.folder if auto else Path(resume)
        damaged, good = [], None
        for path in self._on_every_rank(lambda: _candidates(start) if self._rank == 0 else [])[0]:
            parts = self._on_every_rank(partial(verify, path, self._rank, self._world_size))
            problems = list(dict.fromkeys(problem for part in parts for problem in part))
            if not problems:
                good = path
                break
            damaged.append(f"{path}: {first_few(problems, '; ')}")
        if good is None and not auto:
            what = first_few(damaged, "\n") if damaged else _nothing_in(start)
            raise UserError(
                f"{option}={resume} names no good checkpoint.", what,
                "Use resume=auto." if option == "resume" else "Give another, or leave it out.",
            )  # fmt: skip
        if self._rank == 0:
            for line in damaged:
                say(f"Damaged checkpoint passed over: {line}")
        return good

    def state(self, path: Path) -> dict[str, Any]:
        """The state that was saved with checkpoint folder `path`; reads no tensor. Raises UserError
        if it is damaged."""
        return self._on_every_rank(partial(read_state, path))[0]

    def names(self, path: Path) -> list[str]:
        """Of the tensors that checkpoint folder `path` holds. Raises UserError if that is
        damaged."""
        return self._on_every_rank(partial(tensor_names, path))[0]

    def load(
        self, path: Path, tensors: Mapping[str, Tensor | FlatShard], whole: bool = True
    ) -> None:
        """Fill `tensors` in place from checkpoint folder `path`, whatever the number of processes
        that saved it.

        whole: the checkpoint holds nothing else.
        Raises UserError if names, shapes or dtypes differ, or if a file is damaged.
        """
        self.wait()
        reader = CheckpointReader(path)
        self._on_every_rank(partial(reader.open, tensors, whole))
        _fill(tensors, reader, self._group)

    def _save(
        self,
        writer: CheckpointWriter,
        live: dict[str, Tensor | FlatShard],
        staged: dict[str, Tensor],
    ) -> None:
        try:
            save(
                live,
                storage_writer=writer,
                planner=StagedPlanner(staged),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as failure:
            for error, _ in failure.failures.values():
                if isinstance(error, TrainingError):
                    raise error from None
            if self._rank == 0:
                self._owner.check()  # a later start deletes what we write: no fault of the disk
                writer.discard()
            where = f"{writer.path} cannot be written; the checkpoints before it are intact."
            fix = f"Free some space or make {self.folder} writable, or choose another run_dir."
            raise _user_error(failure, where, fix) or failure from None
        if self._rank == 0:
            try:
                self._owner.check()
                self._owner.published(writer.step)
                self._remove_old()
            except OSError as error:  # the new one is whole: no reason to stop the run
                say(f"{writer.path} is saved, but: {error}")

    def _remove_old(self) -> None:
        # One whose manifest cannot be read is left for a person to look at.
        readable = [(path, manifest) for path, manifest in newest_first(self.folder) if manifest]
        kept = {path for path, _ in readable[: self.keep]}
        metrics = [(m.metric, path) for path, m in readable if m.metric is not None]
        if self.keep_best and metrics:
            kept.add(min(metrics)[1])
        for path, _ in readable:
            if path not in kept:
                remove(path)

    def _on_every_rank(self, work: Callable[[], T]) -> list[T]:
        """What `work()` returns on each rank; if it fails on any, that error on all."""
        mine: T | Exception
        try:
            mine = work()
        except Exception as error:
            mine = error
        outcomes = [mine] * self._world_size
        if self._group is not None:
            dist.all_gather_object(outcomes, mine, group=self._group)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return cast(list[T], outcomes)


def newest_good(start: Path) -> Path:
    """The newest good checkpoint that `start` names: itself, or in that folder, or in its
    `checkpoints`. Reads alone. Raises UserError if there is none."""
    damaged = []
    for path in _candidates(start):
        if not (problems := verify(path)):
            return path
        damaged.append(f"{path}: {first_few(problems, '; ')}")
    raise UserError(*(damaged or [_nothing_in(start)]))


def load_part(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from checkpoint folder `path`, which may hold more, in this process
    alone. Raises UserError as `Checkpointer.load` does."""
    reader = CheckpointReader(path)
    reader.open(tensors, whole=False)
    _fill(tensors, reader, None)


def _fill(tensors: Mapping[str, Any], reader: CheckpointReader, group: Any) -> None:
    try:
        load(
            dict(tensors),
            storage_reader=reader,
            planner=LoadPlanner(),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as failure:
        where = f"{reader.path} cannot be loaded; use another."
        raise (_user_error(failure, where) or failure) from None


def _to_save(tensor: Tensor | FlatShard) -> Tensor | FlatShard:
    """What this process saves of it. Not a copy."""
    if isinstance(tensor, FlatShard):
        return tensor.share()
    return share_of_replica(tensor) if isinstance(tensor, DTensor) else tensor.detach()


def _local(tensor: Tensor | FlatShard) -> Tensor:
    """This process's part, as it lies."""
    if isinstance(tensor, FlatShard):
        return tensor.local
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _cpu_memory(local: Tensor) -> Tensor:
    return torch.empty(local.shape, dtype=local.dtype, device="cpu", pin_memory=local.is_cuda)


def _copy_to_cpu(local: Tensor, copy: Tensor | None) -> Tensor:
    """A copy, in `copy` if it fits; from a GPU it is complete after a synchronize."""
    if copy is None or (copy.shape, copy.dtype) != (local.shape, local.dtype):
        copy = _cpu_memory(local)
    return copy.copy_(local, non_blocking=True)


def _nothing_in(start: Path) -> str:
    """What is said of a place without checkpoints."""
    if not os.path.isdir(start):
        return f"{start}: no such folder"
    if os.path.isfile(start / "config.json"):
        return (
            f"{start}: a model for other programs, not a run; make it one: cola-import "
            f"source={start} out=FOLDER"
        )
    return f"{start}: no checkpoint in this folder"


def _candidates(start: Path) -> list[Path]:
    """Checkpoints that `start` names: itself, or those in it, or in its `checkpoints`."""
    try:
        if NAME.fullmatch(start.name) or (start / MANIFEST).exists():
            return [start]
        found = newest_first(start) or newest_first(start / "checkpoints")
        return [path for path, _ in found]
    except OSError as error:
        raise UserError(f"{start}: cannot be read ({error.strerror})") from None


def _user_error(failure: CheckpointException, where: str, *fix: str) -> UserError | None:
    """What failed on which rank, if the user can do something about all of it."""
    errors = {rank: error for rank, (error, _) in failure.failures.items()}
    if not all(isinstance(error, OSError | UserError) for error in errors.values()):
        return None
    problems = [f"rank {rank}: {error}" for rank, error in sorted(errors.items())]
    return UserError(where, first_few(problems, "\n"), *fix)
