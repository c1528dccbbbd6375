"""The trainer's step, full rank and CoLA, torch's kernels and Triton's, eager and compiled, for
each d_ff and micro-batch: in alternation, a contender that does not fit left out."""

import gc
import itertools
from dataclasses import replace
from typing import Any

import torch

from benchmarks.apart import Step
from benchmarks.bare_config import bare_config
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.sizes import Sizes
from benchmarks.recompute import build_steps
from benchmarks.timing import Timing, alternate
from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config

CONTENDERS = {  # name: method, kernels
    "full": ("full", "torch"),
    "cola, torch": ("cola", "torch"),
    "cola, triton": ("cola", "triton"),
}
MODES = ("compiled", "eager")


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.start()
    hardware.tune_process(None, 1)
    static_shapes()
    for batch, d_ff in itertools.product(sizes.micro_batches, sizes.d_ffs):
        configs = {
            f"{name}, {mode}": config_of(sizes, *contender, mode == "compiled", batch, d_ff)
            for name, contender in CONTENDERS.items()
            for mode in MODES
        }
        steps = build_steps(configs, device)
        record(f"d_ff {d_ff}, {batch} x {sizes.sequence}", times(configs, steps, sizes.step_rounds))
        del steps
        free()


def config_of(
    sizes: Sizes, method: str, kernels: str, compiled: bool, batch: int, d_ff: int,
    policy: str = "none",
) -> Config:  # fmt: skip
    config = bare_config(
        sizes.model, method, policy, batch_size=batch, sequence_length=sizes.sequence,
        precision="auto", compiled=compiled, layers=sizes.layers, kernels=kernels,
    )  # fmt: skip
    if sizes.dry_run:  # Triton's interpreter takes no bf16
        config = replace(config, train=replace(config.train, precision="fp32"))
    return replace(config, model=replace(config.model, **sizes.widths, d_ff=d_ff))


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


def times(configs: dict[str, Config], steps: dict[str, Step], rounds: int) -> dict[str, Figures]:
    """Loss and speed of each step, or why it has failed."""
    found = {name: first_loss(step) for name, step in steps.items()}
    fit = {name: step for name, step in steps.items() if "loss" in found[name]}
    for name, seconds in alternate(fit, rounds, warmup=1).items():
        config = configs[name]
        tokens = config.batch_size * config.train.sequence_length
        flops = costs.training_flops_per_token(config) * tokens
        found[name] |= Timing(seconds, flops, tokens).figures()
    return found


def first_loss(step: Step) -> dict[str, Any]:
    """The loss of a step that compiles and allocates; or why there is none."""
    try:
        return {"loss": step().loss}  # type: ignore[attr-defined]
    except torch.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}
    except Exception as error:
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
