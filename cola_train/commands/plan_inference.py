"""`cola-plan inference`: memory and the least time of a token, and which cache to take."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from cola_train import costs
from cola_train.commands.cli import run_composed
from cola_train.commands.groups import OPTIONS
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.fields import Among, Fraction, Range, build
from cola_train.errors import EXIT_DONE, UserError
from cola_train.gpus import GPUS
from cola_train.parallel.topology import Topology
from cola_train.planning.constants import constants_of
from cola_train.planning.inference import CachePlan, Use, plans
from cola_train.planning.report import gib

COMMAND = "cola-plan inference"
SHARED = {name: kind for name, kind in OPTIONS.items() if name.split(".")[0] in ("model", "method")}


@dataclass(frozen=True)
class InferenceOptions:
    """What `cola-plan inference` takes beside a model and a method."""

    batch: Annotated[int, Range(1, 10**6)] = 1  # sequences at a time
    length: Annotated[int, Range(1, 10**8)] = 4096  # positions of each, prompt and answer
    gpu: Annotated[str, Among(GPUS)] = "h100-80gb"  # cola_train/gpus.py lists them
    output: Literal["table", "json"] = "table"  # table | json
    reserved: Fraction = 0.1  # assumed, of the GPU's memory: CUDA, libraries, fragmentation


def main() -> None:
    run_composed(plan_inference, command=COMMAND, own=InferenceOptions, shared=SHARED)


def plan_inference(values: Mapping[str, Any], problems: list[str]) -> int:
    """Print the plan; returns the exit code.

    Raises:
        UserError: an option is wrong.
    """
    own = {field.name for field in dataclasses.fields(InferenceOptions)}
    options = build(InferenceOptions, {k: values[k] for k in own if k in values}, "", problems)
    if problems:
        raise UserError(*problems)
    others = {k: v for k, v in values.items() if k not in own}
    config = load(others, topology=Topology(1, 1), checks=OF_THE_CONFIG)
    gpu = GPUS[options.gpu]
    usable = gpu.memory_bytes * (1 - options.reserved)
    folded = replace(config, method=config.method.folded)
    use = Use(folded, options.batch, options.length, gpu, usable, constants_of(gpu))
    found = plans(use)
    if options.output == "json":
        print(json.dumps(answer(use, options, found), indent=2))
    else:
        print(text(use, options, found))
    return EXIT_DONE


def answer(use: Use, options: InferenceOptions, found: list[CachePlan]) -> dict[str, Any]:
    """Bytes and seconds, as JSON values."""
    return {
        "model": use.config.model.name,
        "method": use.config.method.name,
        "parameters": costs.parameters(use.config),
        "batch": use.batch,
        "length": use.length,
        "gpu": options.gpu,
        "usable_bytes": use.usable_bytes,
        "weight_bytes": use.weight_bytes,
        "take": found[0].name if found[0].fits else None,
        "caches": [dataclasses.asdict(each) for each in found],
    }


def text(use: Use, options: InferenceOptions, found: list[CachePlan]) -> str:
    config = use.config
    label = ", ".join(filter(None, [config.method.name, config.method.label(config.model)]))
    lines = [
        f"{config.model.name}, {label}: {costs.parameters(config):,} parameters, "
        f"{gib(use.weight_bytes)} in bf16",
        f"{options.gpu}, {use.batch} x {use.length} positions, {gib(use.usable_bytes)} can be used",
        "",
        f"{'cache=':10}{'cache':>12}{'in all':>12}{'ms a step':>11}{'tokens/s':>10}"
        f"{'bound by':>10}{'largest batch':>15}",
    ]
    for each in found:
        lines.append(
            f"{each.name:10}{gib(each.cache_bytes):>12}{gib(each.total_bytes):>12}"
            f"{1e3 * each.seconds:>11.3f}{use.batch / each.seconds:>10,.0f}{each.bound:>10}"
            f"{each.largest_batch:>15,}"
        )
    best = found[0]
    small = min(found, key=lambda each: each.cache_bytes)
    take = f"take cache={best.name}, the fastest that fits: {best.about}"
    if not best.fits:
        most = max(found, key=lambda each: each.largest_batch)
        take = f"no cache fits; batch={most.largest_batch} does with cache={most.name}"
        if not most.largest_batch:
            take = "not even one such sequence fits: make length= smaller, or take another gpu="
    elif small is not best:
        take += f"; cache={small.name} holds {best.cache_bytes / small.cache_bytes:.1f} x as much"
    lines += [
        "",
        take,
        "times are floors, of bytes and FLOPs alone: launches are not in them",
    ]
    return "\n".join(lines)
