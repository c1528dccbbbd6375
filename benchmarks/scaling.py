"""Bytes communicated a step, counted on real gloo processes beside the formula; what a save blocks
beside real steps.

CoLA beside full rank: about half the weights are about half the traffic.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.collectives import Collectives
from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from benchmarks.trainer import random_batches, trainer_step
from cola_train import costs, distributed
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.errors import UserError
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run
from cola_train.planning.traffic import traffic
from cola_train.train import build

WAYS = {
    "full": ["engine.sharding=full"],
    "hybrid": ["engine.sharding=hybrid", "engine.shard_size=2"],
    "replicate": ["engine.sharding=replicate"],
    "ZeRO 0": ["engine=deepspeed", "engine.zero_stage=0"],
    "ZeRO 1": ["engine=deepspeed", "engine.zero_stage=1"],
    "ZeRO 2": ["engine=deepspeed", "engine.zero_stage=2"],
    "ZeRO 3": ["engine=deepspeed", "engine.zero_stage=3"],
}
SAVED = ["full", "replicate", "ZeRO 0", "ZeRO 2", "ZeRO 3"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="process counts (1 2 4)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=tuple(WAYS), default=["full", "hybrid", "replicate"],
        metavar="WAY", help=f"of: {', '.join(WAYS)} (full hybrid replicate)",
    )  # fmt: skip
    parser.add_argument(
        "--saves", type=int, default=6, help="timed saves of each engine, at 60m; 0: none (6)"
    )


def run(options: argparse.Namespace) -> Report:
    if any(text.startswith(("method=", "engine")) for text in options.overrides):
        raise UserError("method, engine: this benchmark chooses both; leave them out")
    saved = SAVED
    if options.saves and find_spec("deepspeed") is None:
        saved = [way for way in SAVED if not way.startswith("ZeRO")]
        print("saves: ZeRO is left out, DeepSpeed is not installed", file=sys.stderr)
    found, saves = [], []
    with tempfile.TemporaryDirectory() as folder:
        for processes in options.processes:
            file = Path(folder) / f"{processes}.json"
            ways = [way for way in options.ways if way != "hybrid" or processes % 2 == 0]
            found += in_group(processes, file, "count", json.dumps(ways), *options.overrides)
            if options.saves and processes <= 2:  # more would share this machine's cores
                for way in saved:
                    print(f"saves: {processes} x {way}", file=sys.stderr, flush=True)
                    saves += in_group(processes, file, "save", way, str(options.saves))
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
    if saves:
        text += "\n\n" + table(
            [
                "a save beside steps of 60m",
                "blocks, first",
                "median",
                "worst",
                "of seconds, median",
            ],
            [
                [
                    f"{of['processes']} x {of['way']}",
                    *(f"{share:.1%}" for share in (shares[0], median(shares), max(shares))),
                    f"{median(of['seconds']):.2f}",
                ]
                for of in saves
                for shares in [[b / s for b, s in zip(of["blocked"], of["seconds"], strict=True)]]
            ],
        )
    return Report({"traffic": found, "saves": saves}, text)


def in_group(processes: int, file: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `worker` finds with these arguments, in a group of `processes`."""
    repository = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", "-m", "benchmarks.scaling", str(file), *arguments],
        cwd=repository, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
    if ran.returncode:
        raise UserError(f"{processes} processes failed:\n{ran.stdout}{ran.stderr}")
    results: list[dict[str, Any]] = json.loads(file.read_text())
    return results


def worker(path: str, what: str, *arguments: str) -> None:
    """One process of `in_group`."""
    distributed.start()
    torch.set_num_threads(1)
    task: Any = {"count": count, "save": save}[what]
    with tempfile.TemporaryDirectory() as folder:
        results = task(distributed.from_main(lambda: folder), *arguments)
    if distributed.is_main():
        Path(path).write_text(json.dumps(results))
    distributed.stop()


def count(folder: str, ways: str, *overrides: str) -> list[dict[str, Any]]:
    """Bytes of a step, all ways and both methods."""
    processes = distributed.world_size()
    results = []
    for way in json.loads(ways):
        for method in ("full", "cola"):
            chosen = [*WAYS[way], f"method={method}", f"run_dir={folder}", *overrides]
            config = make_config(chosen, {"train.precision": "bf16"})
            plan = Run(config, Topology(processes, processes), on_cpu=True)
            batches = random_batches(config)[: plan.accumulation]
            step = trainer_step(config, distributed.device(), batches)
            for _ in range(2):  # DeepSpeed records the order of modules
                step()
            with Collectives() as collectives:
                step()
            planned: dict[str, int] = {}
            for of in traffic(plan):
                planned[of.kind] = planned.get(of.kind, 0) + of.bytes
            results.append(
                {
                    "processes": processes,
                    "way": way,
                    "method": method,
                    "parameters": costs.parameters(config),
                    "counted": dict(collectives.bytes),
                    "planned": planned,
                }
            )
    return results


def save(folder: str, way: str, saves: str) -> list[dict[str, Any]]:
    """Seconds of asynchronous saves beside steps of 60m, as the trainer saves: for how long each
    holds training up, and how long it takes until it is whole and visible."""
    processes = distributed.world_size()
    config = make_config(
        [*WAYS[way], "model=60m", "data.vocab_size=32000", f"run_dir={folder}"],
        {"train.batch_size": "2", "train.micro_batch_size": "1"},
    )
    engine = build(config, distributed.device())
    batches = random_batches(config)[: 2 // processes]
    checkpointer = Checkpointer(
        Path(config.run_dir) / "checkpoints", keep=int(saves), keep_best=False, asynchronous=True
    )  # deletes none, which would take time too
    checkpointer.reserve(engine.state_dict())
    for _ in range(2):
        engine.train_step(batches, config.optim.lr)
    starts, copied, ends = [], [], []
    for step in range(int(saves)):
        starts.append(time.perf_counter())
        whole = checkpointer.save(step, engine.state_dict(), {})
        copied.append(time.perf_counter())
        whole.add_done_callback(lambda _: ends.append(time.perf_counter()))
        while distributed.any_rank(not whole.done()):
            engine.train_step(batches, config.optim.lr)
    checkpointer.close()
    blocked = [then - start for start, then in zip(starts, copied, strict=True)]
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    return [{"processes": processes, "way": way, "blocked": blocked, "seconds": seconds}]


BENCHMARK = Benchmark(
    "bytes communicated a step, counted beside the formula; for how long a save blocks training",
    add_options,
    run,
)

if __name__ == "__main__":
    worker(*sys.argv[1:])
