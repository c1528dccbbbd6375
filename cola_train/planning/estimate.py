"""Step time, and the largest micro-batch that fits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cola_train import costs
from cola_train.gpus import Gpu
from cola_train.planning.constants import StepConstants, constants_of
from cola_train.planning.launch_time import Chip
from cola_train.planning.memory import memory
from cola_train.planning.run import Run
from cola_train.planning.step_time import UPDATE, step_parts
from cola_train.planning.traffic import traffic


@dataclass(frozen=True)
class Assumptions:
    """What no formula knows; options of `cola-plan`."""

    gpu: Gpu
    link_utilisation: float
    network_gbit: float
    reserved: float
    constants: StepConstants = StepConstants()  # noqa: RUF009, frozen

    @property
    def usable_bytes(self) -> int:
        return int(self.gpu.memory_bytes * (1 - self.reserved))

    @property
    def source(self) -> str:
        """Of the constants."""
        if self.constants == StepConstants():
            return "as published for an H100 and scaled by the data sheet's numbers"
        if self.constants == constants_of(self.gpu):
            return "as measured on one (docs/benchmarks.md)"
        return "by the constants given"

    def chip(self, run: Run) -> Chip:
        """The GPU in the precision of `run`."""
        return Chip(self.gpu, self.constants, run.element, fp8=run.config.train.precision == "fp8")

    def describe(self, run: Run) -> list[str]:
        config, constants = run.config, self.constants
        peak = self.chip(run).peak_flops * constants.gemm_peak
        launch = constants.compiled_launch_us if run.compiled else constants.eager_launch_us
        python = f"Python launches a kernel in {launch:g} us"
        if config.train.cuda_graph:
            python = "Python launches the whole step at once (train.cuda_graph)"
        if run.planner.hooks(run):
            python += (
                f", and takes {constants.sharding_block_us:g} us a block for the engine's hooks"
            )
        if run.update_cost.launches:
            python += f"; of the update of matrices one in {constants.update_launch_us:g} us"
        lines = [
            f"each kernel by its shape (docs/planning.md), {self.source}: matmuls up to "
            f"{peak / 1e12:,.0f} TFLOP/s, elementwise "
            f"{self.gpu.memory_bandwidth * constants.pass_bandwidth / 1e12:.2g} TB/s",
            python,
            f"collectives at {self.link_utilisation:.0%} of {self.gpu.link_bandwidth / 1e9:,.0f} "
            f"GB/s in a node, {self.network_gbit:g} Gbit/s a GPU across, hidden by kernels",
            "the update after them; data and evaluation take no time",
            f"{self.reserved:.0%} of {self.gpu.memory_bytes / 2**30:.0f} GiB for CUDA, NCCL and "
            "fragmentation",
            f"memory is that of training: an evaluation of {config.evaluation.batch_size} "
            "sequences a process (evaluation.batch_size) may need more",
        ]  # fmt: skip
        if config.train.precision == "fp8":
            lines.append(
                "fp8: two of a linear's three matmuls, by the data sheet; MFU is of bf16's peak"
            )
        if run.planner.offloads(run):
            lines.append("offload: its transfers and the update on the CPU are not in the time")
        if config.data.document_mask and config.model.attention != "flash":
            lines.append(
                "data.document_mask: its (sequence, sequence) masks and the slower attention with "
                "them are not in the plan; model.attention=flash needs none"
            )
        return lines


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    parts: the GPU's kernels, by `launches.PARTS`. They hide collectives and Python up to the last
    part, the update, or the other way round: `waiting` is what they do not hide.
    """

    parts: dict[str, float]
    collectives: float
    python: float
    tokens_per_second: float  # of all processes
    mfu: float

    @property
    def update(self) -> float:
        return self.parts[UPDATE]

    @property
    def kernels(self) -> float:
        """Those before the update."""
        return sum(self.parts.values()) - self.update

    @property
    def waiting(self) -> dict[str, float]:
        """What the GPU waits for, and how long."""
        network = max(0.0, self.collectives - self.kernels)
        python = max(0.0, self.python - self.kernels - network)
        return {"waiting for collectives": network, "waiting for Python": python}

    @property
    def every_part(self) -> dict[str, float]:
        """What adds up to the step."""
        return self.parts | self.waiting

    @property
    def total(self) -> float:
        return max(self.kernels, self.collectives, self.python) + self.update


def step_time(run: Run, given: Assumptions) -> StepTime:
    """The estimate that `Assumptions.describe` describes."""
    chip = given.chip(run)
    parts, python = step_parts(run, chip)
    parts[UPDATE] += collective_seconds(run, given, of_update=True)
    time = StepTime(parts, collective_seconds(run, given, of_update=False), python, 0.0, 0.0)
    tokens = run.accumulation * run.tokens  # of one process
    model_flops = tokens * costs.training_flops_per_token(run.config)
    return replace(
        time,
        tokens_per_second=tokens * run.topology.world / time.total,
        mfu=model_flops / time.total / chip.peak_flops,
    )


def collective_seconds(run: Run, given: Assumptions, of_update: bool) -> float:
    """Of a step's collectives before its update, or in it, one after the other."""
    gpu, topology, seconds = given.gpu, run.topology, 0.0
    for collective in traffic(run):
        if collective.of_update is not of_update:
            continue
        # neighbours lie in one node if it has room for them all
        inside = topology.world <= topology.local_world or (
            collective.processes <= topology.local_world and not collective.strided
        )
        network = given.network_gbit * 1e9 / 8
        bandwidth = gpu.link_bandwidth if inside else min(network, gpu.link_bandwidth)
        seconds += collective.sent / (bandwidth * given.link_utilisation)
    return seconds


def largest_micro_batch(run: Run, usable_bytes: int) -> int:
    """Sequences; 0 if not even one fits.

    If a process's whole share of the batch does not fit at once, gradients are accumulated, which
    takes memory too.
    """
    share = run.config.batch_size // run.topology.data
    for accumulation in (1, 2):

        def fits(size: int, accumulation: int = accumulation) -> bool:
            return memory(run.with_micro_batch(size, accumulation)).total <= usable_bytes

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
