"""Run by test_checkpoint.py: `save FOLDER` on 4 processes, `load FOLDER` on 2, `die FOLDER` on 1.

save and load build an FSDP2 model and its AdamW state (3 rows over 4 ranks: one shard is empty),
on a 1-D mesh and replicated and sharded on a 2-D one, with plain tensors beside them.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cola_train.checkpoint import storage
from cola_train.checkpoint.checkpointer import Checkpointer, read_state
from cola_train.checkpoint.flat_shard import FlatShard, share_of_replica
from cola_train.errors import UserError

STATE = {"step": 8, "losses": [0.1, float("inf")], "sampler": {"epoch": 2, "seed": 2**63}}


def build(mesh: DeviceMesh | None, seed: int) -> dict[str, Tensor]:
    """Tensors of a model after one AdamW step, sharded over `mesh` if there is one."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3))
    if mesh is not None:
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 5)).square().sum().backward()
    optimizer.step()
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(6, 2, generator=generator)
    return tensors | {
        "plain.bf16": plain.bfloat16(),
        "plain.transposed": plain.t(),
        "plain.int64": torch.arange(5) + seed,
        "plain.uint8": torch.full((3,), seed, dtype=torch.uint8),
        "plain.bool": plain > 0,
        "plain.empty": torch.zeros(0, 4),
        "plain.scalar": torch.tensor(float(seed)),
    }


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unsharded copies (collective)."""
    return {
        key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for key, value in tensors.items()
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0, msg=key)


def save(folder: Path) -> None:
    rank = dist.get_rank()
    one = init_device_mesh("cpu", (4,))
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    copies = init_device_mesh("cpu", (4, 1), mesh_dim_names=("replicate", "shard"))
    for name, mesh in (("fsdp", one), ("hsdp", two), ("replicate", copies)):
        run = folder / name
        checkpointer = Checkpointer(run, keep=2, keep_best=False, asynchronous=True)
        tensors = build(mesh, seed=1)
        expected = whole(tensors)
        if rank == 0:
            stored = {key: value.contiguous() for key, value in expected.items()}
            safetensors.torch.save_file(stored, folder / f"{name}.safetensors")
        each_element_is_saved_once(tensors)
        checkpointer.save(8, tensors, STATE)
        with torch.no_grad():  # training goes on while the save is under way
            for tensor in tensors.values():
                tensor.zero_()
        checkpointer.wait()
        path = checkpointer.find("auto")
        assert path == run / "step-00000008", path
        again = build(mesh, seed=2)
        checkpointer.load(path, again)
        assert checkpointer.state(path) == STATE == read_state(path)
        assert_same(whole(again), expected)

    one_rank_fails(folder / "faults", tensors)
    damage_is_seen_by_all(folder / "faults")


def each_element_is_saved_once(tensors: dict[str, Tensor]) -> None:
    """Replicas share what they save out among them."""
    for key, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            share = share_of_replica(tensor)
            mine = share.local if isinstance(share, FlatShard) else share.to_local()
            saved = torch.tensor(mine.numel())
            dist.all_reduce(saved)
            assert saved == tensor.numel(), key


def one_rank_fails(run: Path, tensors: dict[str, Tensor]) -> None:
    """A full disk on rank 2 alone: every rank raises, the checkpoint before is intact."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpointer = Checkpointer(run, keep=1, keep_best=False, asynchronous=True)
    checkpointer.save(8, tensors, {})
    checkpointer.wait()
    write_file = storage.write_file
    if dist.get_rank() == 2:
        storage.write_file = full  # type: ignore[assignment]
    checkpointer.save(9, tensors, {})
    try:
        checkpointer.save(10, tensors, {})  # raises what the save before it met
    except UserError as error:
        assert "rank 2: [Errno 28] No space left on device" in str(error), error
        assert str(run) in str(error)
    else:
        raise AssertionError("the save did not fail")
    storage.write_file = write_file
    assert checkpointer.find("auto") == run / "step-00000008"
    if dist.get_rank() == 0:  # alone: it starts the next save only after looking
        assert [path.name for path in run.iterdir()] == ["step-00000008"]
    checkpointer.save(9, tensors, {})
    checkpointer.close()
    assert checkpointer.find(str(run)) == run / "step-00000009"


def damage_is_seen_by_all(run: Path) -> None:
    """One flipped byte in a file that one rank alone checks."""
    checkpointer = Checkpointer(run, keep=2, keep_best=False, asynchronous=False)
    checkpointer.save(11, {"x": torch.arange(4), "y": torch.arange(5)}, {})
    if dist.get_rank() == 0:
        file = max((run / "step-00000011").glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    dist.barrier()
    assert checkpointer.find("auto") == run / "step-00000009"
    try:
        checkpointer.find(str(run / "step-00000011"))
    except UserError as error:
        assert "SHA-256" in str(error), error
    else:
        raise AssertionError("a damaged checkpoint was accepted")


def load(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for name in ("fsdp", "hsdp", "replicate", "single"):
        checkpointer = Checkpointer(folder / name, keep=1, keep_best=False, asynchronous=True)
        tensors = build(mesh, seed=2)
        path = checkpointer.find(str(folder / name / "step-00000008"))
        assert path is not None
        checkpointer.load(path, tensors)
        assert checkpointer.state(path) == STATE
        assert_same(whole(tensors), safetensors.torch.load_file(folder / f"{name}.safetensors"))
    try:
        checkpointer.load(
            folder / "fsdp/step-00000008", {"model.0.weight": tensors["model.0.weight"]}
        )
    except UserError as error:
        assert "in the checkpoint only: model.0.bias" in str(error), error
    else:
        raise AssertionError("a checkpoint with other tensors was accepted")


def die(folder: Path) -> None:
    """Kill -9 in the middle of writing a second checkpoint."""
    checkpointer = Checkpointer(folder, keep=1, keep_best=False, asynchronous=True)
    checkpointer.save(1, {"x": torch.arange(4)}, {})
    checkpointer.wait()
    write_file = storage.write_file

    def half(path: Path, pieces: Iterable[Any]) -> None:
        write_file(path, [b"".join(bytes(piece) for piece in pieces)[:50]])
        os.kill(os.getpid(), signal.SIGKILL)

    storage.write_file = half  # type: ignore[assignment]
    checkpointer.save(2, {"x": torch.arange(4)}, {})
    checkpointer.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "die":
        die(Path(sys.argv[2]))
    dist.init_process_group("gloo")
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
    dist.barrier()
    dist.destroy_process_group()
