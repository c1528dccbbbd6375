"""Checkpoints on real files and real processes: exact, whole, and harmless to load."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from helpers import run_worker
from torch.distributed.device_mesh import init_device_mesh
from workers.checkpoint_worker import STATE, assert_same, build, whole

from cola_train.checkpoint.checkpointer import Checkpointer, read_state, verify
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.errors import UserError
from cola_train.run.owner import Owner, SupersededError
from cola_train.run.status import read_record, verdict

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def checkpointer(folder: Path, keep: int = 2, keep_best: bool = False) -> Checkpointer:
    return Checkpointer(folder, keep=keep, keep_best=keep_best, asynchronous=True)


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 5), value), "step": torch.tensor(value)}


def save(saver: Checkpointer, step: int, metric: float | None = None) -> None:
    saver.save(step, tensors(float(step)), {"step": step}, metric)
    saver.wait()


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, after checking that there is nothing else in it."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 4 processes (fsdp, hsdp, replicate) and of this one (single), with what is
    true of each."""
    folder = tmp_path_factory.mktemp("saved")
    run_worker("checkpoint_worker.py", "save", folder, processes=4)
    single = build(None, seed=1)
    saver = checkpointer(folder / "single")
    saver.save(8, single, STATE)
    saver.wait()
    stored = {key: value.contiguous() for key, value in whole(single).items()}
    safetensors.torch.save_file(stored, folder / "single.safetensors")
    return folder


@pytest.fixture
def group_of_one() -> Iterator[None]:
    ours = not dist.is_initialized()  # tests before this one may have left theirs
    if ours:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if ours:
        dist.barrier()
        dist.destroy_process_group()


@pytest.mark.slow
def test_loads_on_two_processes(saved: Path) -> None:
    run_worker("checkpoint_worker.py", "load", saved, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "hsdp", "replicate"])
def test_loads_on_one_process(saved: Path, group_of_one: None, name: str) -> None:
    reader = checkpointer(saved / name)
    path = reader.find("auto")
    assert path == saved / name / "step-00000008"
    expected = safetensors.torch.load_file(saved / f"{name}.safetensors")
    for mesh in (init_device_mesh("cpu", (1,)), None):
        actual = build(mesh, seed=2)
        reader.load(path, actual)
        assert reader.state(path) == STATE
        assert_same(whole(actual), expected)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def plant(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(canary_of(file.parent))))


def canary_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] / "code-was-run"


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (3, 4, 5), (2, 1, 3, 2)])
def test_a_run_of_elements_is_a_few_boxes(shape: tuple[int, ...]) -> None:
    """Every run of a tensor's elements, put back box by box, is that run and nothing else."""
    whole = torch.arange(1, torch.Size(shape).numel() + 1).view(shape)
    for start in range(whole.numel() + 1):
        for stop in range(start, whole.numel() + 1):
            shard = FlatShard(whole.shape, start, whole.reshape(-1)[start:stop])
            back = torch.zeros_like(whole)
            for offset, part in shard.parts().items():
                box = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
                assert back[box].shape == part.shape and not back[box].any()
                back[box] = part
            assert len(shard.parts()) <= max(1, 2 * len(shape) - 1)
            flat = back.reshape(-1)
            assert torch.equal(flat[start:stop], shard.local)
            assert not flat[:start].any() and not flat[stop:].any()


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 4)])
def test_a_run_of_a_padded_tensor_has_its_own_elements(shape: tuple[int, ...]) -> None:
    """Runs that meet anywhere, and shares of replicas, filled box by box, fill the tensor and leave
    its padding."""
    own = torch.arange(1, torch.Size(shape).numel() + 1).view(shape)
    stored = torch.Size(n + 2 for n in shape)
    for middle in range(stored.numel() + 1):
        flat = torch.zeros(stored.numel(), dtype=torch.int64)
        shards = [FlatShard(own.shape, 0, flat[:middle], stored)]
        for replica in range(3):
            shards.append(FlatShard(own.shape, middle, flat[middle:], stored, (replica, 3)).share())
        filled = 0
        for shard in shards:
            for offset, part in shard.parts().items():
                box = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
                part.copy_(own[box])
                filled += part.numel()
        assert filled == own.numel() and flat.sum() == own.sum()
        assert torch.equal(flat.view(stored)[tuple(map(slice, shape))], own)


FILES = ["rank-00000.safetensors", "tensors.json", "state.json", "manifest.json"]


@pytest.mark.parametrize(
    ("damage", "name"),
    [(damage, name) for damage in (flip, truncate, Path.unlink, plant) for name in FILES]
    + [(plant, ".metadata"), (plant, "extra.safetensors")],
)
def test_damage_is_named_and_passed_over(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    name: str,
) -> None:
    folder = tmp_path / "checkpoints"
    saver = checkpointer(folder)
    save(saver, 1)
    save(saver, 2)
    older, newer = folder / "step-00000001", folder / "step-00000002"
    assert verify(newer) == []
    damage(newer / name)
    (problem,) = verify(newer)
    assert name in problem

    assert saver.find("auto") == older
    message = capsys.readouterr().err
    assert str(newer) in message and name in message
    with pytest.raises(UserError, match=name):
        saver.find(str(newer))
    assert saver.find(str(tmp_path)) == older
    assert not canary_of(newer).exists()

    save(saver, 2)  # training goes on and comes to that step again
    assert saver.find("auto") == newer
    assert not (folder / "step-00000002.replaced").exists()


@pytest.mark.parametrize("name", FILES[:3])
def test_a_pickle_with_the_right_checksum_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    saver = checkpointer(tmp_path / "checkpoints")
    save(saver, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    plant(path / name)
    pickle.loads((path / name).read_bytes())
    canary_of(path).rmdir()  # so it does go off where a pickle is loaded

    planted = (path / name).read_bytes()
    content = json.loads((path / "manifest.json").read_text())
    entry = {"bytes": len(planted), "sha256": hashlib.sha256(planted).hexdigest()}
    content["files"][name] = entry
    del content["checksum"], content["format"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    content |= {"checksum": checksum, "format": 1}
    (path / "manifest.json").write_text(json.dumps(content))

    assert saver.find("auto") == path  # the forger's manifest is consistent
    with pytest.raises(UserError, match=name):
        saver.state(path)
        saver.load(path, tensors())
    assert not canary_of(path).exists()


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saver = checkpointer(folder, keep=2, keep_best=True)
    save(saver, 1)
    for step, metric in ((2, 3.0), (3, 1.0), (4, 2.0), (5, None), (6, float("nan"))):
        save(saver, step, metric)
    assert steps(folder) == [3, 5, 6]
    save(saver, 4, 0.5)  # an earlier step, saved last: now the newest and the best
    assert steps(folder) == [4, 6]
    assert saver.find("auto") == folder / "step-00000004"


def test_what_a_crash_leaves_is_ignored_then_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    run_worker("checkpoint_worker.py", "die", folder, expect=-signal.SIGKILL)
    names = sorted(path.name for path in folder.iterdir())
    assert [name.endswith(".partial") for name in names] == [True, False]
    saver = checkpointer(folder)
    assert saver.find("auto") == folder / "step-00000001"
    save(saver, 2)
    assert steps(folder) == [1, 2]


def test_replacing_never_loses_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    saver = checkpointer(folder)
    save(saver, 7)
    rename = Path.rename

    def fail_to_publish(source: Path, target: Path) -> Path:
        if source.name.endswith(".partial"):
            raise OSError("no more renames")
        return rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no more renames"):
        patch.setattr(Path, "rename", fail_to_publish)
        save(saver, 7)
    old = saver.find("auto")
    assert old is not None and saver.state(old) == {"step": 7}
    saver.load(old, tensors())
    assert old.name == "step-00000007.replaced"
    save(saver, 7)
    assert steps(folder) == [7]


def test_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path])
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        saver = checkpointer(tmp_path / "checkpoints")
        save(saver, 1)
        with pytest.raises(UserError) as caught:
            saver.save(2, {"x": torch.zeros(2**20)}, {})
            saver.wait()
        assert "No space left" in str(caught.value) and "step-00000002" in str(caught.value)
        assert "Free some space" in str(caught.value)
        assert saver.find("auto") == tmp_path / "checkpoints" / "step-00000001"
        save(saver, 3)  # what the failed save had written no longer fills the disk
        assert steps(tmp_path / "checkpoints") == [1, 3]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another run_dir"):
        save(checkpointer(tmp_path / "file" / "checkpoints"), 1)


def test_find(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path / "checkpoints")
    assert saver.find("auto") is None
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        saver.find(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        saver.find(str(tmp_path / "checkpoints" / "step-00000009"))
    save(saver, 1)
    assert saver.find("never") is None
    assert saver.find("auto") == saver.find(str(tmp_path)) == tmp_path / "checkpoints/step-00000001"


def test_other_tensors_are_named(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path / "checkpoints")
    save(saver, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    with pytest.raises(UserError) as caught:
        saver.load(path, {"weight": torch.zeros(3, 6), "bias": torch.zeros(3)})
    for part in ("not in the checkpoint: bias", "in the checkpoint only: step", "(3, 6)", "method"):
        assert part in str(caught.value)
    assert read_state(path) == {"step": 1}


def test_a_superseded_writer_publishes_and_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overtaken before it writes, and, later than any look at the token, just before it renames."""
    first = Owner(tmp_path)
    folder = tmp_path / "checkpoints"
    old = Checkpointer(
        folder, keep=1, keep_best=False, asynchronous=True, owner=first
    )  # fmt: skip
    save(old, 1)
    rename = Path.rename
    claims: list[Owner] = []

    def claim_first(source: Path, target: Path) -> Path:
        if source.name.endswith(".partial") and not claims:
            claims.append(Owner(tmp_path))
            checkpointer(folder)
        return rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(SupersededError, match="later start"):
        patch.setattr(Path, "rename", claim_first)
        save(old, 2)
    assert steps(folder) == [1]
    with pytest.raises(SupersededError, match="later start"):
        save(old, 3)
    assert steps(folder) == [1]
    first.report("lost", 1)
    assert read_record(tmp_path / "status.json")["token"] == claims[0].claim["token"]

    monkeypatch.setenv("COLA_LAUNCH", "1")  # a restart by the launch that was superseded
    with pytest.raises(SupersededError):
        Owner(tmp_path)
    assert verdict(tmp_path, 1)[:2] == ("superseded", 1)
    claims[0].report("stopped", 75)
    assert verdict(tmp_path, 2)[:2] == ("stopped", 75)
    assert verdict(tmp_path, 3)[:2] == ("unknown", 1)
