"""Step time, the largest micro-batch that fits, and the search for the best way to run a config."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from cola_train import costs
from cola_train.config.checks import engine_problems
from cola_train.config.schema import Config, EngineConfig, RecomputeConfig
from cola_train.gpus import Gpu
from cola_train.planning.memory import Memory, memory
from cola_train.planning.run import FP32, Job
from cola_train.planning.traffic import traffic

# Host time to launch the kernels of one block, forward and backward, without torch.compile:
# about 200 at 5 microseconds. An assumption, not a measurement.
LAUNCH_SECONDS = 1e-3


Policy = Literal["none", "full", "cola_m", "light"]


@dataclass(frozen=True)
class Assumptions:
    """What no formula knows; options of `cola-plan`."""

    gpu: Gpu
    utilisation: float
    link_utilisation: float
    network_gbit: float
    reserved: float

    @property
    def usable_bytes(self) -> int:
        return int(self.gpu.memory_bytes * (1 - self.reserved))

    def peak_flops(self, config: Config) -> float:
        """FLOP/s of the GPU in the precision of `config`."""
        fp32 = config.train.precision == "fp32"
        return self.gpu.fp32_flops if fp32 else self.gpu.bf16_flops

    def describe(self, config: Config) -> list[str]:
        launches = f"; at least {LAUNCH_SECONDS * 1e3:g} ms a block and micro-batch, to launch them"
        lines = [
            f"products at {self.utilisation:.0%} of {self.peak_flops(config) / 1e12:,.0f} TFLOP/s"
            f"{'' if config.train.compile else launches}",
            f"collectives at {self.link_utilisation:.0%} of {self.gpu.link_bandwidth / 1e9:,.0f} "
            f"GB/s in a node, {self.network_gbit:g} Gbit/s a GPU across, hidden by products",
            f"optimizer at {self.gpu.memory_bandwidth / 1e12:g} TB/s, after them; data and "
            "evaluation take no time",
            f"{self.reserved:.0%} of {self.gpu.memory_bytes / 2**30:.0f} GiB for CUDA, NCCL and "
            "fragmentation",
            f"memory is that of training: an evaluation of {config.evaluation.batch_size} "
            "sequences a process (evaluation.batch_size) may need more",
        ]
        if {"cpu", "nvme"} & {config.engine.offload_optimizer, config.engine.offload_parameters}:
            lines.append("offload: its transfers and the update on the CPU are not in the time")
        if config.data.document_mask and config.model.attention != "flash":
            lines.append(
                "data.document_mask: its (sequence, sequence) masks and the slower attention with "
                "them are not in the plan; model.attention=flash needs none"
            )
        return lines


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; the products hide collectives, or the other way round."""

    products: float
    collectives: float
    optimizer: float
    tokens_per_second: float  # of all processes
    mfu: float

    @property
    def total(self) -> float:
        return max(self.products, self.collectives) + self.optimizer


def step_time(job: Job, given: Assumptions) -> StepTime:
    """The estimate that `Assumptions.describe` describes."""
    config, gpu = job.config, given.gpu
    tokens = job.accumulation * job.tokens  # of one process
    L = config.model.n_layers
    model_flops = tokens * costs.training_flops_per_token(config)
    again = tokens * L * costs.block_recomputed_flops_per_token(config, job.fused)
    peak = given.peak_flops(config)
    launches = 0.0 if config.train.compile else job.accumulation * L * LAUNCH_SECONDS
    products = max((model_flops + again) / (peak * given.utilisation), launches)
    collectives = 0.0
    for collective in traffic(job):
        # neighbours lie in one node if it has room for them all
        inside = job.processes <= job.local_processes or (
            collective.processes <= job.local_processes and not collective.strided
        )
        network = given.network_gbit * 1e9 / 8
        bandwidth = gpu.link_bandwidth if inside else min(network, gpu.link_bandwidth)
        collectives += collective.sent / (bandwidth * given.link_utilisation)
    parameters = costs.parameters(config) / job.shard_size
    # reads weight, gradient (and for its norm), two moments; writes weight and moments
    optimizer = 8 * FP32 * parameters / gpu.memory_bandwidth
    total = max(products, collectives) + optimizer
    return StepTime(
        products,
        collectives,
        optimizer,
        tokens_per_second=tokens * job.processes / total,
        mfu=model_flops / total / peak,
    )


def with_micro_batch(job: Job, size: int, accumulation: int) -> Job:
    train = dataclasses.replace(
        job.config.train,
        micro_batch_size=size,
        batch_size=size * accumulation * job.processes,
        batch_tokens=None,
    )
    return dataclasses.replace(job, config=dataclasses.replace(job.config, train=train))


def largest_micro_batch(job: Job, usable_bytes: int) -> int:
    """Sequences; 0 if not even one fits.

    If a process's whole share of the batch does not fit at once, gradients are accumulated, which
    takes memory too.
    """
    share = job.config.batch_size // job.processes
    for accumulation in (1, 2):

        def fits(size: int, accumulation: int = accumulation) -> bool:
            return memory(with_micro_batch(job, size, accumulation)).total <= usable_bytes

        largest = bisect(fits)
        if largest >= share:
            return largest
    return largest


def bisect(fits: Callable[[int], bool]) -> int:
    """The largest whole number that fits, if all below it do; 0 if 1 does not."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Candidate:
    """One way to run the config, as overrides of `cola-train`."""

    job: Job
    overrides: tuple[str, ...]
    memory: Memory
    time: StepTime


def search(job: Job, given: Assumptions, goal: str, named: set[str]) -> list[Candidate]:
    """Every way that fits, the best first; of equally fast ones the one that sends less, and then
    that needs less memory.

    goal: throughput or memory. named: the options on the command line, which stay as they are.
    """
    found = []
    share = job.config.batch_size // job.processes
    own_policy = job.config.recompute.name
    for engine, engine_overrides in engines_left_open(job, named):
        for policy in [own_policy] if names_group(named, "recompute") else policies(job):
            config = dataclasses.replace(
                job.config, engine=engine, recompute=RecomputeConfig(policy)
            )
            variant = dataclasses.replace(job, config=config)
            fixed = "train.micro_batch_size" in named
            for size in [job.micro_batch_size] if fixed else divisors(share):
                candidate = with_micro_batch(variant, size, share // size)
                held = memory(candidate)
                if held.total > given.usable_bytes:
                    continue  # a larger one may fit, if it is the whole share: no accumulation
                overrides = [*engine_overrides, f"recompute={policy}"]
                if config.train.batch_tokens is None:
                    overrides.append(f"train.batch_size={share * job.processes}")
                overrides.append(f"train.micro_batch_size={size}")
                left = tuple(word for word in overrides if word.split("=")[0] not in named)
                time = step_time(candidate, given)
                found.append(Candidate(candidate, left, held, time))
    if goal == "memory":
        return sorted(found, key=lambda c: (c.memory.total, c.time.total))
    return sorted(
        found, key=lambda c: (round(c.time.total, 6), round(c.time.collectives, 6), c.memory.total)
    )


def names_group(named: set[str], group: str) -> bool:
    return any(name == group or name.startswith(f"{group}.") for name in named)


def divisors(number: int) -> list[int]:
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def policies(job: Job) -> list[Policy]:
    """Recompute policies that the method has."""
    if job.config.method.name == "cola":
        return ["none", "light", "cola_m", "full"]
    return ["none", "full"]


def engines(job: Job) -> Iterator[tuple[EngineConfig, list[str]]]:
    """Engines and ways of sharding, with their overrides."""
    plain = dataclasses.replace(
        job.config.engine,
        name="fsdp",
        sharding="full",
        shard_size=None,
        reshard_after_forward=True,
        sync_every_micro_batch=True,
        zero_stage=None,
        offload_optimizer=None,
        offload_parameters=None,
        nvme_path=None,
        overrides=None,
    )
    shardings = ["full"]
    if job.processes > 1:
        shardings.append("replicate")
    shard_size = job.config.engine.shard_size or job.local_processes
    nodes = job.processes > job.local_processes and job.processes % job.local_processes == 0
    if nodes or job.config.engine.sharding == "hybrid":
        shardings.append("hybrid")
    for sharding in shardings:
        size = shard_size if sharding == "hybrid" else None
        for reshard in (True, False):
            overrides = [
                "engine=fsdp",
                f"engine.sharding={sharding}",
                f"engine.reshard_after_forward={str(reshard).lower()}",
            ]
            if size:
                overrides.append(f"engine.shard_size={size}")
            yield (
                dataclasses.replace(
                    plain,
                    sharding=sharding,  # type: ignore[arg-type]
                    shard_size=size,
                    reshard_after_forward=reshard,
                ),
                overrides,
            )
    for stage in range(4):
        engine = dataclasses.replace(
            plain,
            name="deepspeed",
            sharding=None,
            reshard_after_forward=None,
            sync_every_micro_batch=None,
            zero_stage=stage,
            offload_optimizer="none",
            offload_parameters="none",
        )
        yield engine, ["engine=deepspeed", f"engine.zero_stage={stage}"]


def engines_left_open(job: Job, named: set[str]) -> Iterator[tuple[EngineConfig, list[str]]]:
    """Those that agree with the `engine` options on the command line."""
    own = job.config.engine
    options = {name.removeprefix("engine.") for name in named if name.startswith("engine.")}
    for engine, overrides in engines(job):
        searched = {word.split("=")[0].removeprefix("engine.") for word in overrides}
        if names_group(named, "engine") and engine.name != own.name:
            continue
        if any(getattr(engine, name) != getattr(own, name) for name in options & searched):
            continue
        engine = dataclasses.replace(engine, **{name: getattr(own, name) for name in options})
        config = dataclasses.replace(job.config, engine=engine)
        if not any(engine_problems(config, job.processes)):
            yield engine, overrides


def one_sequence(job: Job) -> Job:
    """`job` with micro-batches of one sequence, accumulated if there are several."""
    return with_micro_batch(job, 1, min(2, max(1, job.config.batch_size // job.processes)))


def what_would_help(job: Job, given: Assumptions, gpus_per_node: int) -> list[tuple[str, int]]:
    """Single changes after which one sequence fits, with the bytes it then needs."""
    helps: list[tuple[str, Job]] = []
    for policy in policies(job):
        config = dataclasses.replace(job.config, recompute=RecomputeConfig(policy))
        helps.append((f"recompute={policy}", dataclasses.replace(job, config=config)))
    for engine, overrides in engines(job):
        config = dataclasses.replace(job.config, engine=engine)
        helps.append((" ".join(overrides), dataclasses.replace(job, config=config)))
    for factor in (2, 4, 8, 16, 32, 64):
        processes = factor * job.processes
        more = dataclasses.replace(
            job, processes=processes, local_processes=min(processes, gpus_per_node)
        )
        helps.append((f"gpus={processes}", more))
    sequence = job.config.train.sequence_length
    while sequence > 256:
        sequence //= 2
        train = dataclasses.replace(job.config.train, sequence_length=sequence)
        config = dataclasses.replace(job.config, train=train)
        helps.append((f"train.sequence_length={sequence}", dataclasses.replace(job, config=config)))
    if job.config.method.name != "cola":
        method = dataclasses.replace(
            job.config.method,
            name="cola",
            rank_ratio=job.config.model.cola_rank_ratio,
            activation=job.config.model.cola_activation,
        )
        config = dataclasses.replace(job.config, method=method)
        helps.append(("method=cola", dataclasses.replace(job, config=config)))
    fitting: list[tuple[str, int]] = []
    for change, variant in helps:
        needed = memory(one_sequence(variant)).total
        if variant != job and needed <= given.usable_bytes:
            kind = change.split("=")[0]
            if kind in ("gpus", "train.sequence_length") and any(
                known.startswith(kind) for known, _ in fitting
            ):
                continue  # the smallest change of its kind is enough
            fitting.append((change, needed))
    at_once = bisect(
        lambda size: memory(with_micro_batch(job, size, 1)).total <= given.usable_bytes
    )
    if 0 < at_once < job.config.batch_size // job.processes:  # what accumulation takes is spared
        needed = memory(with_micro_batch(job, at_once, 1)).total
        fitting.append((f"train.batch_size={at_once * job.processes}", needed))
    return fitting
