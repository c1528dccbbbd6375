"""CoLA's recomputation policies: speed and peak memory, beside what `cola-plan` says."""

import itertools
from dataclasses import replace

from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import MODES, build_what_can_be, config_of, free, static_shapes, times
from benchmarks.recompute import gpu_memory
from cola_train import distributed, hardware
from cola_train.config.schema import Config
from cola_train.gpus import Gpu
from cola_train.parallel.topology import Topology
from cola_train.planning.constants import StepConstants, constants_of
from cola_train.planning.estimate import Assumptions, step_time
from cola_train.planning.memory import memory
from cola_train.planning.run import Run

POLICIES = ("none", "light", "cola_m")
KERNELS = ("torch", "triton")


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.start()
    hardware.tune_process(None, 1)
    static_shapes()
    gpu = given.gpu(device)
    for mode, kernels in itertools.product(reversed(MODES), KERNELS):
        configs = {
            policy: policy_config(sizes, kernels, mode == "compiled", policy) for policy in POLICIES
        }
        steps, failed = build_what_can_be(configs, device)
        found = times(configs, steps, sizes.step_rounds)
        for policy, figures in found.items():
            figures |= planned(configs[policy], gpu)
            if "loss" in figures and device.type == "cuda":
                figures |= gpu_memory(steps[policy])
        record(f"{kernels}, {mode}", found | failed)
        del steps
        free()


def policy_config(sizes: Sizes, kernels: str, compiled: bool, policy: str) -> Config:
    return config_of(sizes, "cola", kernels, compiled, sizes.micro_batches[0], policy)


def planned(config: Config, gpu: Gpu | None) -> Figures:
    """What the planner says; the time, if it knows the GPU."""
    figures: Figures = {"planned_bytes": memory(Run(config, Topology(1, 1), gpu=gpu)).total}
    if gpu is not None:
        figures["planned_seconds"] = modelled_step(config, gpu, constants_of(gpu))
    return figures


def modelled_step(config: Config, gpu: Gpu, constants: StepConstants) -> float:
    """Seconds by the planner's model; links and reserve are nothing to one process's."""
    given = Assumptions(gpu, link_utilisation=1.0, network_gbit=1.0, reserved=0.0)
    run = Run(config, Topology(1, 1), gpu=gpu)
    return step_time(run, replace(given, constants=constants)).total


def lines(figures: Figures) -> list[str]:
    said = [
        "| kernels, policy | tokens/s | of `none`'s | ms | planned | peak GiB | planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernels, of in figures.items():
        for policy, f in of.items():
            if "failed" in f:
                said.append(f"| {kernels}, {policy} | {f['failed']} | | | | | |")
                continue
            cells = [
                f"{f['tokens_per_second']:,.0f}",
                f"{speed_of(of, policy) or 0:.2f}",
                f"{f['step_seconds_median'] * 1e3:.1f}",
                f"{f['planned_seconds'] * 1e3:.1f}" if "planned_seconds" in f else "",
                f"{f['peak_memory_bytes'] / 2**30:.2f}" if "peak_memory_bytes" in f else "",
                f"{f['planned_bytes'] / 2**30:.2f}",
            ]
            said.append(f"| {kernels}, {policy} | {' | '.join(cells)} |")
    return said


def speed_of(of: dict[str, Figures], policy: str) -> float | None:
    """Over the policy `none`."""
    ours, none = (of.get(p, {}).get("tokens_per_second") for p in (policy, "none"))
    return ours / none if ours and none else None
