"""The trainer's step, full rank and CoLA, torch's kernels and Triton's, eager and compiled, for
each micro-batch, as stored and with d_ff unpadded: in alternation, a contender that does not fit
left out."""

import gc
import itertools
from dataclasses import replace
from typing import Any

import torch

from benchmarks.bare_config import bare_config
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.sizes import Sizes
from benchmarks.recompute import PolicyStep, build_steps
from benchmarks.timing import Timing, alternate
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config

CONTENDERS = {  # name: method, kernels
    "full": ("full", "torch"),
    "cola, torch": ("cola", "torch"),
    "cola, triton": ("cola", "triton"),
}
MODES = ("compiled", "eager")
UNPADDED = ", unpadded"  # the end of a shape's name: an odd d_ff leaves rows unaligned


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.start()
    hardware.tune_process(None, 1)
    static_shapes()
    for batch, padded in itertools.product(sizes.micro_batches, (True, False)):
        configs = {
            f"{name}, {mode}": config_of(sizes, *contender, mode == "compiled", batch)
            for name, contender in CONTENDERS.items()
            for mode in MODES
        }
        steps, failed = build_what_can_be(configs, device, padded)
        found = times(configs, steps, sizes.step_rounds)
        record(f"{batch} x {sizes.sequence}{'' if padded else UNPADDED}", found | failed)
        del steps
        free()


def config_of(
    sizes: Sizes, method: str, kernels: str, compiled: bool, batch: int, policy: str = "none"
) -> Config:  # fmt: skip
    config = bare_config(
        sizes.model, method, policy, batch_size=batch, sequence_length=sizes.sequence,
        precision="auto", compiled=compiled, layers=sizes.layers, kernels=kernels,
    )  # fmt: skip
    if sizes.dry_run:  # Triton's interpreter takes no bf16
        config = replace(config, train=replace(config.train, precision="fp32"))
    return replace(config, model=replace(config.model, **sizes.widths))


def static_shapes() -> None:
    """Compile anew for each batch, as a training has but one."""
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 256


def free() -> None:
    """Give back what the last steps held."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build_what_can_be(
    configs: dict[str, Config], device: torch.device, padded: bool = True
) -> tuple[dict[str, PolicyStep], dict[str, Figures]]:
    """The steps, and why others cannot be built: too little memory, or no Triton."""
    steps: dict[str, PolicyStep] = {}
    failed: dict[str, Figures] = {}
    for contender in dict.fromkeys((c.method.name, c.kernels) for c in configs.values()):
        some = {n: c for n, c in configs.items() if (c.method.name, c.kernels) == contender}
        try:
            steps |= build_steps(some, device, padded)
        except Exception as error:
            failed |= dict.fromkeys(some, failure(error))
    return steps, failed


def times(
    configs: dict[str, Config], steps: dict[str, PolicyStep], rounds: int
) -> dict[str, Figures]:
    """Loss and speed of each step, or why it has failed."""
    found = {name: first_loss(step) for name, step in steps.items()}
    fit = {name: step for name, step in steps.items() if "loss" in found[name]}
    for name, seconds in alternate(fit, rounds, warmup=1).items():
        config = configs[name]
        tokens = config.batch_size * config.train.sequence_length
        flops = costs.training_flops_per_token(config) * tokens
        found[name] |= Timing(seconds, flops, tokens).figures()
    return found


def first_loss(step: PolicyStep) -> dict[str, Any]:
    """The loss of a step that compiles and allocates; or why there is none."""
    try:
        return {"loss": step().loss}
    except Exception as error:
        return failure(error)


def failure(error: Exception) -> Figures:
    gc.collect()
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}
    return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def lines(figures: Figures) -> list[str]:
    said: list[str] = []
    for what, of in figures.items():
        said += [f"**{what}**", "", "| | tokens/s | ms | TFLOP/s | over full |",
                 "|---|---|---|---|---|"]  # fmt: skip
        for name, f in of.items():
            if "failed" in f:
                said.append(f"| {name} | {f['failed']} | | | |")
                continue
            mode = name.split(", ")[-1]
            full = of.get(f"full, {mode}", {}).get("step_seconds_median")
            ratio = f"{full / f['step_seconds_median']:.2f}" if full else ""
            said.append(
                f"| {name} | {f['tokens_per_second']:,.0f} | {f['step_seconds_median'] * 1e3:.1f} "
                f"| {f['flops_per_second'] / 1e12:.0f} | {ratio} |"
            )
        said.append("")
    return said
