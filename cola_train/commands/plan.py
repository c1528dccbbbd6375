"""The command `cola-plan`: parameters, FLOPs, memory, traffic and time before paying for them.

It takes what `cola-train` takes, and options of its own. Nothing is built, no engine
and no torch imported.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cola_train import costs
from cola_train.commands import plan_inference
from cola_train.commands.cli import run_composed
from cola_train.commands.overrides import given_options
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.fields import (
    Among,
    Fraction,
    PathText,
    PositiveFloat,
    PositiveFraction,
    Range,
    build,
)
from cola_train.errors import EXIT_DONE, UserError
from cola_train.gpus import GPUS
from cola_train.parallel.topology import Topology
from cola_train.planning import report
from cola_train.planning.constants import StepConstants, constants_of
from cola_train.planning.estimate import Assumptions, largest_micro_batch, step_time
from cola_train.planning.memory import memory
from cola_train.planning.run import Run
from cola_train.planning.search import Candidate, search, smallest, what_would_help
from cola_train.planning.traffic import traffic

PAPER_BATCH = 512  # sequences; what a search starts from if no batch is given


@dataclass(frozen=True)
class PlanConfig:
    """What `cola-plan` takes beside every option of `cola-train`."""

    gpus: Annotated[int, Range(1, 10**6)] = 1  # processes, one a GPU
    gpus_per_node: Annotated[int, Range(1, 10**6)] = 8  # at most
    gpu: Annotated[str, Among(GPUS)] = "h100-80gb"  # cola_train/gpus.py lists them
    # throughput | memory: search engine, sharding, recomputation and micro-batch; null: none
    goal: Literal["throughput", "memory"] | None = None
    output: Literal["table", "json"] = "table"  # table | json
    # FILE.png: memory and the step's time by part, under each recompute policy
    plot: PathText | None = None
    explain: bool = False  # list the step's time by part, as output=json always does
    # FILE.json of the step-time model's, by `benchmarks gpu`; null: measured on it, or an H100's
    constants: PathText | None = None
    link_utilisation: PositiveFraction = 0.7  # assumed, of the links' bandwidth, by collectives
    network_gbit: PositiveFloat = 400.0  # assumed between nodes, each way, for each GPU
    # assumed, of the GPU's memory: CUDA, NCCL, libraries, fragmentation
    reserved: Fraction = 0.1


def main() -> None:
    """The command `cola-plan`; `cola-plan inference` is another."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-plan ... | head` just ends
    if sys.argv[1:2] == ["inference"]:
        del sys.argv[1]
        plan_inference.main()
    run_composed(plan, command="cola-plan", own=PlanConfig)


def plan(values: Mapping[str, Any], problems: list[str]) -> int:
    """Answer the question of the command line; returns the exit code.

    Raises:
        UserError: the config is wrong, or no batch of it fits.
    """
    own = {field.name for field in dataclasses.fields(PlanConfig)}
    options = build(PlanConfig, {k: v for k, v in values.items() if k in own}, "", problems)
    if problems:
        raise UserError(*problems)
    others = {k: v for k, v in values.items() if k not in own}
    given = given_options(sys.argv[1:])
    topology = Topology(options.gpus, min(options.gpus, options.gpus_per_node))
    train, unset = others.get("train"), {"batch_size": None, "batch_tokens": None}
    if options.goal and isinstance(train, dict) and train == {**train, **unset}:
        batch_size = -(-PAPER_BATCH // options.gpus) * options.gpus
        others["train"] = {**train, "batch_size": batch_size}
    config = load(others, topology=topology, checks=OF_THE_CONFIG)
    if config.train.precision == "fp8" and GPUS[options.gpu].fp8_flops is None:
        able = ", ".join(name for name, gpu in GPUS.items() if gpu.fp8_flops)
        raise UserError(
            f"gpu: {options.gpu} has no fp8, and this is train.precision=fp8; plan for {able}, or "
            "for train.precision=bf16"
        )
    run = Run(config, topology, gpu=GPUS[options.gpu])
    assumptions = assumed(options)
    candidates: list[Candidate] = []
    if options.goal:
        candidates = search(run, assumptions, options.goal, given)
        if not candidates:
            raise UserError(*impossible(run, options, assumptions))
        run = candidates[0].run
    largest = largest_micro_batch(run, assumptions.usable_bytes)
    if largest == 0:
        raise UserError(*impossible(run, options, assumptions))
    answer = describe(run, options, assumptions, largest, candidates)
    if options.plot:
        try:
            report.plot(run, assumptions, options.gpu, Path(options.plot))
        except (OSError, ValueError) as error:
            raise UserError(f"plot: cannot write {options.plot}: {error}") from error
        print(f"plot: {options.plot}", file=sys.stderr)  # stdout is the answer's alone
    if options.output == "json":
        print(json.dumps(answer, indent=2))
    else:
        print(report.text(answer, options.explain))
    return EXIT_DONE


def assumed(options: PlanConfig) -> Assumptions:
    """Raises UserError: the file of constants is not one."""
    given = Path(options.constants) if options.constants else None
    gpu = GPUS[options.gpu]
    return Assumptions(
        gpu,
        options.link_utilisation,
        options.network_gbit,
        options.reserved,
        StepConstants.from_json(given) if given else constants_of(gpu),
    )


def describe(
    run: Run,
    options: PlanConfig,
    assumptions: Assumptions,
    largest: int,
    candidates: list[Candidate],
) -> dict[str, Any]:
    """Everything the plan knows, as JSON values; bytes and seconds."""
    config = run.config
    held, time = memory(run), step_time(run, assumptions)
    again = config.model.n_layers * run.cost.recomputed_flops
    hours = config.train.steps * time.total / 3600
    answer: dict[str, Any] = {
        "model": config.model.name,
        "method": config.method.name,
        "variant": config.method.label(config.model),
        "recompute": config.recompute.name,
        "engine": run.planner.describe(run),
        "kernels": "triton" if run.triton else "torch",
        "compiled": run.compiled,
        "gpus": options.gpus,
        "gpu": options.gpu,
        "sequence_length": config.train.sequence_length,
        "batch_size": config.batch_size,
        "micro_batch_size": run.micro_batch_size,
        "accumulation": run.accumulation,
        "parameters": costs.parameters(config),
        "stored_parameters": run.stored,
        "flops_per_token": {
            "forward": costs.forward_flops_per_token(config),
            "training": costs.training_flops_per_token(config),
            "recomputed": again,
        },
        "flops_per_micro_batch": costs.micro_batch_flops(config),
        "memory": {
            "moment": held.peak.name,
            "total_bytes": held.total,
            "parts_bytes": held.peak.parts,
            "largest_bytes": held.largest,
            "usable_bytes": assumptions.usable_bytes,
            "fits": held.total <= assumptions.usable_bytes,
        },
        "largest_micro_batch_size": largest,
        "traffic": [
            {**dataclasses.asdict(collective), "sent_bytes": collective.sent}
            for collective in traffic(run)
        ],
        "step_time": {
            "seconds": time.total,
            **dataclasses.asdict(time),
            "waiting": time.waiting,
        },
        "run": {
            "steps": config.train.steps,
            "tokens": config.train.steps * config.batch_size * config.train.sequence_length,
            "hours": hours,
            "gpu_hours": hours * options.gpus,
        },
        "assumptions": assumptions.describe(run),
    }
    if candidates:
        answer["goal"] = options.goal
        answer["overrides"] = list(candidates[0].overrides)
        answer["others"] = [
            {
                "overrides": list(other.overrides),
                "seconds": other.time.total,
                "total_bytes": other.memory.total,
            }
            for other in others(candidates)
        ]
    return answer


def others(candidates: list[Candidate], count: int = 5) -> list[Candidate]:
    """The best of each further engine, sharding and policy."""
    best: dict[tuple[str, ...], Candidate] = {}
    for candidate in candidates:
        way = (word for word in candidate.overrides if "micro_batch_size=" not in word)
        best.setdefault(tuple(way), candidate)
    return list(best.values())[1 : 1 + count]


def impossible(run: Run, options: PlanConfig, assumptions: Assumptions) -> list[str]:
    """Why nothing fits, and what would help."""
    least = smallest(run)
    held, size = memory(least), least.micro_batch_size
    what, needs = "not even one sequence a process fits", "it needs"
    if size > 1:
        what, needs = (
            f"the {size} sequences of a process do not fit at once",
            ("in one micro-batch, as this config has it, they need"),
        )
    part, largest = max(held.peak.parts.items(), key=lambda item: item[1])
    tried = "; every engine and policy that the command line leaves open was tried"
    lines = [
        f"memory: {what} on {options.gpus} x {options.gpu}: {needs} "
        f"{report.gib(held.total)} of {report.gib(assumptions.usable_bytes)} that can be used"
        f"{tried if options.goal else ''}",
        f"largest part: {part}, {report.gib(largest)} (at its peak, the {held.peak.name})",
    ]
    helps = what_would_help(run, assumptions, options.gpus_per_node)
    if helps:
        lines += [f"would fit: {change} ({report.gib(needed)})" for change, needed in helps]
    else:
        lines.append(
            "no single change is enough: combine more gpus with sharding and recomputation, or "
            "take a smaller model or another gpu"
        )
    return lines


if __name__ == "__main__":
    main()
