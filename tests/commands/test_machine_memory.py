"""A run on CPUs that cannot fit into the machine's memory is refused before anything starts."""

import time
from pathlib import Path

import pytest
import torch
from helpers import make_config, run_forked

from cola_train import distributed, hardware
from cola_train.commands import memory as machine
from cola_train.commands.memory import memory_problems
from cola_train.errors import EXIT_USER_ERROR
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run

GIB = 2**30
TOO_LARGE = ["model=7b", "model.n_layers=3200"]  # terabytes


@pytest.fixture
def available(monkeypatch):
    def give(size: float) -> None:
        monkeypatch.setattr(hardware, "available_memory", lambda: int(size))

    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))
    return give


def test_the_readmes_1b_under_8_processes_is_refused_with_the_numbers(available):
    available(20 * GIB)
    config = make_config("model=1b", "engine.sharding=hybrid", "train.precision=bf16")
    began = time.process_time()
    (problem,) = memory_problems(config, Topology(8, 8))
    assert time.process_time() - began < 0.1
    assert problem.startswith(
        "memory: 1b needs at least 23.23 GiB for 8 processes on this machine, and 20.00 GiB are "
        "available; would fit: 1 process and train.micro_batch_size=4 (at most"
    )
    assert problem.endswith("or take a smaller model")
    # what it proposes is not refused
    fewer = make_config(
        "model=1b", "engine.sharding=hybrid", "train.precision=bf16", "train.micro_batch_size=4"
    )
    assert not list(memory_problems(fewer, Topology(1, 1)))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["train.precision=bf16"], "recompute=light"),
        (["train.precision=bf16"], "train.micro_batch_size=4"),
        (["model.n_layers=960"], "no single change is enough"),
    ],
)
def test_what_would_help_is_named(options, word, available):
    available(19.5 * GIB)
    (problem,) = memory_problems(make_config("model=1b", *options), Topology(1, 1))
    assert word in problem


def test_what_may_fit_is_not_refused(available):
    """Measured on 2 cores of an AMD EPYC: resident MiB of one process."""
    for processes, options, resident in (
        (1, "model=small", 1240),
        (1, "model=60m train.batch_size=4 train.sequence_length=1024", 2132),
        (1, "model=350m train.batch_size=2 recompute=cola_m", 4353),
        (1, "model=1b train.batch_size=2 recompute=light", 13048),
        (2, "model=130m recompute=cola_m train.batch_size=2", 2164),
        (2, "model=small engine=deepspeed train.batch_size=4", 634),
        (2, "model=60m engine=deepspeed engine.zero_stage=3 train.batch_size=2", 2074),
    ):
        topology = Topology(processes, processes)
        config = make_config(*options.split(), "train.precision=bf16")
        run = Run(config, topology, on_cpu=True)
        taken = processes * resident * 2**20
        assert machine.at_least(run) < taken < machine.at_most(run), options
        available(taken)
        assert not list(memory_problems(config, topology)), options


@pytest.mark.parametrize(
    "options",
    [
        ["train.batch_size=3"],  # of 8 processes: its own check says so
        ["engine=deepspeed", "engine.overrides={zero_optimization:{reduce_bucket_size:auto}}"],
    ],
)
def test_what_cannot_be_planned_is_left_to_others(options, available):
    available(1)
    good = make_config("model=60m")
    assert list(memory_problems(good, Topology(8, 8)))
    assert not list(memory_problems(make_config("model=60m", *options), Topology(8, 8)))


def test_gpus_and_the_other_processes_of_a_machine_are_not_asked(available, monkeypatch):
    available(1)
    config = make_config("model=60m")
    assert not list(memory_problems(config, Topology(8, 8, rank=1, local_rank=1)))
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 0))
    assert not list(memory_problems(config, Topology(8, 8)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a run on CPUs")
def test_the_command_refuses_and_prepare_does_not(tiny, tmp_path):
    folder = tmp_path / "run"
    ran = run_forked("-m", "cola_train", *TOO_LARGE, f"run_dir={folder}", expect=EXIT_USER_ERROR)
    assert ran.stderr.startswith("error: memory: 7b needs at least") and not folder.exists()
    options = ["--nodes=1", "--processes-per-node=1", "--gpus-per-node=0", f"run_dir={folder}"]
    checked = run_forked("-m", "cola_train.commands.preflight", *options, *TOO_LARGE, expect=2)
    assert "error: memory: 7b needs at least" in checked.stderr
    prepared = run_forked("-m", "cola_train.commands.prepare", *tiny, "model.n_layers=10000")
    assert Path(prepared.stdout.strip()).is_dir()


def test_available_memory_is_within_the_limits_of_cgroups(tmp_path):
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert hardware.available_memory(tmp_path) is None  # not Linux
    write("proc/meminfo", "MemTotal: 900 kB\nMemAvailable: 500 kB\nSwapFree: 10 kB\n")
    write("proc/self/cgroup", "0::/job/step\n")
    assert hardware.available_memory(tmp_path) == 510 * 1024
    group = "sys/fs/cgroup/job"  # of version 2, and of the parent
    write(f"{group}/memory.max", "max\n")
    write(f"{group}/memory.current", f"{300 * 1024}\n")
    write(f"{group}/memory.stat", f"anon 1\nactive_file {1024}\ninactive_file {2 * 1024}\n")
    assert hardware.available_memory(tmp_path) == 510 * 1024
    write(f"{group}/memory.max", f"{400 * 1024}\n")
    assert hardware.available_memory(tmp_path) == (400 - 300 + 3 + 10) * 1024
    group = "sys/fs/cgroup/memory"  # of version 1, whose path is another namespace's
    write("proc/self/cgroup", "4:cpu,memory:/docker/abc\n0::/\n")
    write(f"{group}/memory.limit_in_bytes", f"{200 * 1024}\n")
    write(f"{group}/memory.usage_in_bytes", f"{150 * 1024}\n")
    write(f"{group}/memory.stat", "total_active_file 0\ntotal_inactive_file 1024\n")
    assert hardware.available_memory(tmp_path) == (200 - 150 + 1 + 10) * 1024
    assert (hardware.available_memory() or 0) > 0
