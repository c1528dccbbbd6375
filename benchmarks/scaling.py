"""Bytes communicated a step, counted on real gloo processes beside the formula; what a save blocks.

CoLA beside full rank: about half the weights are about half the traffic.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.collectives import Collectives
from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from benchmarks.trainer import random_batches, trainer_step
from cola_train import distributed
from cola_train.checkpoint import Checkpointer
from cola_train.errors import UserError
from cola_train.planning.job import Job
from cola_train.planning.traffic import traffic

WAYS = {
    "full": ["engine.sharding=full"],
    "hybrid": ["engine.sharding=hybrid", "engine.shard_size=2"],
    "replicate": ["engine.sharding=replicate"],
    "ZeRO 1": ["engine=deepspeed", "engine.zero_stage=1"],
    "ZeRO 2": ["engine=deepspeed", "engine.zero_stage=2"],
    "ZeRO 3": ["engine=deepspeed", "engine.zero_stage=3"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="process counts (1 2 4)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=tuple(WAYS), default=["full", "hybrid", "replicate"],
        metavar="WAY", help=f"of: {', '.join(WAYS)} (full hybrid replicate)",
    )  # fmt: skip
    parser.add_argument("--save-mib", type=int, default=200, help="MiB of a timed checkpoint (200)")


def run(options: argparse.Namespace) -> Report:
    if any(text.startswith(("method=", "engine")) for text in options.overrides):
        raise UserError("method, engine: this benchmark chooses both; leave them out")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in options.processes:
            file = Path(folder) / f"{processes}.json"
            ways = [way for way in options.ways if way != "hybrid" or processes % 2 == 0]
            found += counted(processes, ways, options.overrides, file)
        saves = save_shares(Path(folder), options.save_mib)
    rows = []
    for of in found:
        counted_bytes, planned = sum(of["counted"].values()), sum(of["planned"].values())
        kinds = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in of["counted"].items())
        same = "equal" if of["counted"] == of["planned"] else f"{planned / 1e6:.2f} planned"
        rows.append(
            [
                f"{of['processes']} x {of['way']}, {of['method']}",
                f"{counted_bytes / 1e6:.2f}",
                same,
                f"{of['parameters'] / 1e6:.2f}",
                kinds,
            ]
        )
    text = table(["", "MB a step", "formula", "M parameters", "by collective"], rows)
    blocked = f"an asynchronous save blocks for {median(saves[1:]):.1%} of its duration (median of "
    blocked += f"{len(saves) - 1}; the first, which allocates its buffers: {saves[0]:.1%})"
    return Report({"traffic": found, "save_shares": saves}, f"{text}\n{blocked}")


def counted(
    processes: int, ways: list[str], overrides: list[str], file: Path
) -> list[dict[str, Any]]:
    """Counts of all ways and both methods, in one group of `processes`."""
    repository = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", "-m", "benchmarks.scaling", str(file), json.dumps(ways),
         *overrides],
        cwd=repository, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
    if ran.returncode:
        raise UserError(f"{processes} processes failed:\n{ran.stdout}{ran.stderr}")
    results: list[dict[str, Any]] = json.loads(file.read_text())
    return results


def save_shares(folder: Path, mib: int) -> list[float]:
    """Of each of six asynchronous saves, the share for which `save` blocks."""
    tensors = {f"model.{i}": torch.randn(mib * 2**18 // 10) for i in range(10)}
    checkpointer = Checkpointer(folder / "save", keep=1, keep_best=False, asynchronous=True)
    shares = []
    for step in range(1, 7):
        start = time.perf_counter()
        checkpointer.save(step, tensors, {})
        blocked = time.perf_counter() - start
        checkpointer.wait()
        shares.append(blocked / (time.perf_counter() - start))
    checkpointer.close()
    return shares


def worker(path: str, ways: str, *overrides: str) -> None:
    """One process of `counted`."""
    distributed.start()
    torch.set_num_threads(1)
    processes = distributed.world_size()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for way in json.loads(ways):
            for method in ("full", "cola"):
                chosen = [*WAYS[way], f"method={method}", f"run_dir={folder}", *overrides]
                config = make_config(chosen, {"train.precision": "bf16"})
                job = Job(config, processes, processes, on_cpu=True)
                batches = random_batches(config)[: job.accumulation]
                step = trainer_step(config, distributed.device(), batches)
                for _ in range(2):  # DeepSpeed records the order of modules
                    step()
                with Collectives() as collectives:
                    step()
                planned: dict[str, int] = {}
                for of in traffic(job):
                    planned[of.kind] = planned.get(of.kind, 0) + of.bytes
                results.append(
                    {
                        "processes": processes,
                        "way": way,
                        "method": method,
                        "parameters": job.root.elements
                        + config.model.n_layers * job.block.elements,
                        "counted": dict(collectives.bytes),
                        "planned": planned,
                    }
                )
    if distributed.is_main():
        Path(path).write_text(json.dumps(results))
    distributed.stop()


BENCHMARK = Benchmark(
    "bytes communicated a step, counted beside the formula; what an asynchronous save blocks",
    add_options,
    run,
)

if __name__ == "__main__":
    worker(*sys.argv[1:])
