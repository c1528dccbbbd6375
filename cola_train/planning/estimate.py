"""Step time, and the largest micro-batch that fits."""

from collections.abc import Callable
from dataclasses import dataclass

from cola_train import costs
from cola_train.config.schema import Config
from cola_train.gpus import Gpu
from cola_train.planning.memory import memory
from cola_train.planning.run import FP32, Run
from cola_train.planning.traffic import traffic

# Host time to launch the kernels of one block, forward and backward, without torch.compile:
# about 200 at 5 microseconds. An assumption, not a measurement.
LAUNCH_SECONDS = 1e-3


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

    def describe(self, run: Run) -> list[str]:
        config = run.config
        launches = f"; at least {LAUNCH_SECONDS * 1e3:g} ms a block and micro-batch, to launch them"
        lines = [
            f"matmuls at {self.utilisation:.0%} of {self.peak_flops(config) / 1e12:,.0f} TFLOP/s"
            f"{'' if run.compiled else launches}",
            f"collectives at {self.link_utilisation:.0%} of {self.gpu.link_bandwidth / 1e9:,.0f} "
            f"GB/s in a node, {self.network_gbit:g} Gbit/s a GPU across, hidden by matmuls",
            f"optimizer at {self.gpu.memory_bandwidth / 1e12:g} TB/s, after them; data and "
            "evaluation take no time",
            f"{self.reserved:.0%} of {self.gpu.memory_bytes / 2**30:.0f} GiB for CUDA, NCCL and "
            "fragmentation",
            f"memory is that of training: an evaluation of {config.evaluation.batch_size} "
            "sequences a process (evaluation.batch_size) may need more",
        ]
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
    """Seconds of one optimizer step; the matmuls hide collectives, or the other way round."""

    matmuls: float
    collectives: float
    optimizer: float
    tokens_per_second: float  # of all processes
    mfu: float

    @property
    def total(self) -> float:
        return max(self.matmuls, self.collectives) + self.optimizer


def step_time(run: Run, given: Assumptions) -> StepTime:
    """The estimate that `Assumptions.describe` describes."""
    config, gpu, topology = run.config, given.gpu, run.topology
    tokens = run.accumulation * run.tokens  # of one process
    L = config.model.n_layers
    model_flops = tokens * costs.training_flops_per_token(config)
    again = tokens * L * run.cost.recomputed_flops
    peak = given.peak_flops(config)
    launches = 0.0 if run.compiled else run.accumulation * L * LAUNCH_SECONDS
    matmuls = max((model_flops + again) / (peak * given.utilisation), launches)
    collectives = 0.0
    for collective in traffic(run):
        # neighbours lie in one node if it has room for them all
        inside = topology.world <= topology.local_world or (
            collective.processes <= topology.local_world and not collective.strided
        )
        network = given.network_gbit * 1e9 / 8
        bandwidth = gpu.link_bandwidth if inside else min(network, gpu.link_bandwidth)
        collectives += collective.sent / (bandwidth * given.link_utilisation)
    trained = sum(weight.elements for weight in run.weights if weight.trainable)
    state = sum(map(config.method.optimizer_elements, run.weights))
    # reads weight, gradient (and for its norm) and state; writes weight and state
    passed = FP32 * (4 * trained + 2 * state) / run.planner.copy_size(run)
    optimizer = passed / gpu.memory_bandwidth
    total = max(matmuls, collectives) + optimizer
    return StepTime(
        matmuls,
        collectives,
        optimizer,
        tokens_per_second=tokens * topology.world / total,
        mfu=model_flops / total / peak,
    )


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
