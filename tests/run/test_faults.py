"""Disks, clocks and servers that fail under a run: named, passed over or stopped cleanly."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import (
    children_of,
    exit_code_of,
    finish,
    launch,
    losses,
    read_json,
    run_to_end,
    wait_until,
)

STEPS = "train.steps=40"


@pytest.fixture(scope="module")
def undisturbed(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert exit_code_of([*tiny, STEPS, f"run_dir={run_dir}"]) == 0
    return losses(run_dir)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(options).returncode != 0:
        pytest.skip("may not mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


@pytest.mark.slow
def test_full_disk_stops_the_run_and_loses_no_step(tiny, small_disk, undisturbed):
    run_dir = small_disk / "run"
    common = [*tiny, STEPS, "checkpoint.keep=1", f"run_dir={run_dir}"]
    run_to_end([*common, "train.stop_after=12"])
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bfree * 4096 - 20_000))
    output = run_to_end(common, expect=2)
    assert "No space left" in output and str(run_dir) in output and "Traceback" not in output
    remount(small_disk, "size=8m")
    run_to_end(common)
    assert losses(run_dir) == undisturbed


@pytest.mark.slow
def test_read_only_folder_is_named(tiny, small_disk, undisturbed):
    run_dir = small_disk / "run"
    common = [*tiny, STEPS, "checkpoint.keep=1", f"run_dir={run_dir}"]
    remount(small_disk, "size=8m")
    run_to_end([*common, "train.stop_after=12"])
    remount(small_disk, "ro")
    output = run_to_end(common, expect=2)
    assert f"run_dir: cannot write {run_dir}" in output and "Traceback" not in output
    remount(small_disk, "rw")
    run_to_end(common)
    assert losses(run_dir) == undisturbed


JUMPING_CLOCK = """
import random, time
now = time.time
time.time = lambda: now() + random.choice([-1, 1]) * 86400 * 365
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tiny, tmp_path, undisturbed, monkeypatch):
    """Time jumps by two years at each look, and the older checkpoint's files are the newer."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(JUMPING_CLOCK)
    path = f"{tmp_path / 'clock'}:{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    common = [*tiny, STEPS, f"run_dir={tmp_path / 'run'}"]
    finish(launch([*common, "train.stop_after=12"]))
    for name, when in (("step-00000010", 2e9), ("step-00000012", 1e9)):
        for each in (tmp_path / "run/checkpoints" / name).glob("**/*"):
            os.utime(each, (when, when))
    assert "step-00000012" in finish(launch(common))[0]
    assert losses(tmp_path / "run") == undisturbed


def test_a_flipped_byte_in_the_data_is_named(tiny, tmp_path, capsys, undisturbed):
    arguments = [*tiny, STEPS, f"data.cache_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    assert exit_code_of([*arguments, "train.stop_after=6"]) == 0
    (shard,) = tmp_path.glob("*/train-00000.tokens.npy")
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert exit_code_of(arguments) == 2
    error = capsys.readouterr().err
    assert shard.name in error and "its checksum differs" in error
    shard.write_bytes(content)
    assert exit_code_of(arguments) == 0
    assert losses(tmp_path / "run") == undisturbed


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unreachable", "slow"])
def test_wandb_that_does_not_answer(tiny, tmp_path, undisturbed, monkeypatch, silent_server, kind):
    """The run goes on, and W&B's record is there to be synchronised later."""
    url = silent_server if kind == "slow" else "http://127.0.0.1:9"
    for name, value in {
        "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "WANDB_INIT_TIMEOUT": "3",
        "HOME": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    output = run_to_end([*tiny, STEPS, "tracking.wandb=online", f"run_dir={run_dir}"])
    assert "records offline" in output
    assert losses(run_dir) == undisturbed
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_data_worker_that_dies_is_named_and_its_work_done_again(tmp_path, tiny):
    """SIGKILL to a process that tokenises: a clean end; the next start goes on with the shards."""
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"some words of file {i} and more of them\n" * 60_000)
    common = [
        *tiny, f"data.files=[{tmp_path}/*.txt]", f"data.cache_dir={tmp_path / 'cache'}",
        "data.workers=2", "train.steps=2", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    process = launch(common)

    def workers() -> list[int]:
        found = children_of(process.pid)
        return [w for w in found if b"spawn_main" in Path(f"/proc/{w}/cmdline").read_bytes()]

    wait_until(lambda: bool(workers()), "a worker", process)
    os.kill(workers()[0], signal.SIGKILL)
    output, _ = finish(process, expect=2)
    assert "a process that tokenises died" in output
    assert exit_code_of(common) == 0
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert read_json(tmp_path / "run/status.json")["state"] == "done"
