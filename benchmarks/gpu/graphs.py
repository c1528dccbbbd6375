"""The trainer's step as one CUDA graph, compiled: the GPU's own time, whatever the host takes. One
contender after the other, alone in memory, beside what `cola-plan` says."""

import time
from dataclasses import replace

import torch

from benchmarks.apart import synchronize
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.policies import planned
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import config_of, failure, free, static_shapes
from benchmarks.recompute import random_batch
from benchmarks.timing import Timing
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config
from cola_train.engines.fsdp.graph import WARM_UP
from cola_train.train import build

CONTENDERS = {  # name: method, kernels, policy
    "full": ("full", "torch", "none"),
    "cola, torch": ("cola", "torch", "none"),
    "cola, triton": ("cola", "triton", "none"),
    "cola_m, torch": ("cola", "torch", "cola_m"),
    "cola_m, triton": ("cola", "triton", "cola_m"),
}


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.start()
    hardware.tune_process(None, 1)
    static_shapes()
    gpu = given.gpu(device)
    for batch in sizes.micro_batches:
        found: dict[str, Figures] = {}
        for name, contender in CONTENDERS.items():
            config = graph_config(sizes, batch, *contender)
            try:
                found[name] = timed(config, device, 2 * sizes.step_rounds) | planned(config, gpu)
            except Exception as error:
                found[name] = failure(error)
            record(f"{batch} x {sizes.sequence}", found)
            free()


def graph_config(sizes: Sizes, batch: int, method: str, kernels: str, policy: str) -> Config:
    """In a dry run without the graph, which a CPU does not have."""
    config = config_of(sizes, method, kernels, True, batch, policy)
    return replace(config, train=replace(config.train, cuda_graph=not sizes.dry_run))


def timed(config: Config, device: torch.device, rounds: int) -> Figures:
    """Steps one after the other, each to its end."""
    engine, batch = build(config, device), random_batch(config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP + 2):  # the recording among them
        result = engine.train_step([batch], config.optim.lr)
    seconds = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        result = engine.train_step([batch], config.optim.lr)
        synchronize()
        seconds.append(time.perf_counter() - start)
    tokens = config.batch_size * config.train.sequence_length
    found = Timing(seconds, costs.training_flops_per_token(config) * tokens, tokens).figures()
    peak = hardware.peak_memory_bytes(device) if device.type == "cuda" else None
    return {"loss": result.loss, **found} | ({"peak_memory_bytes": peak} if peak else {})


def lines(figures: Figures) -> list[str]:
    said = []
    for what, of in figures.items():
        said += [
            f"**{what}**",
            "",
            "| | tokens/s | ms | planned | over full | peak GiB | planned |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, f in of.items():
            if "failed" in f:
                said.append(f"| {name} | {f['failed']} | | | | | |")
                continue
            full = of["full"].get("step_seconds_median")
            cells = [
                f"{f['tokens_per_second']:,.0f}",
                f"{f['step_seconds_median'] * 1e3:.1f}",
                f"{f['planned_seconds'] * 1e3:.1f}" if "planned_seconds" in f else "",
                f"{full / f['step_seconds_median']:.2f}" if full else "",
                f"{f['peak_memory_bytes'] / 2**30:.2f}" if "peak_memory_bytes" in f else "",
                f"{f['planned_bytes'] / 2**30:.2f}",
            ]
            said.append(f"| {name} | {' | '.join(cells)} |")
        said.append("")
    return said
