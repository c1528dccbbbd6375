"""A config on a number of processes: what the formulas of memory, traffic and time start from."""

from dataclasses import dataclass
from functools import cached_property
from math import prod

from cola_train import costs
from cola_train.config.schema import Config

FP32 = 4  # bytes


@dataclass(frozen=True)
class Job:
    """`config` on `processes`, `local_processes` of them on each machine.

    on_cpu: as the tests run it, with gloo; else on NVIDIA GPUs with NCCL.
    """

    config: Config
    processes: int
    local_processes: int
    on_cpu: bool = False

    @property
    def element(self) -> int:
        """Bytes of the compute dtype."""
        return FP32 if self.config.train.precision == "fp32" else 2

    @property
    def fused(self) -> bool:
        """Whether low-rank layers run on Triton's kernels."""
        if self.config.method.name != "cola":
            return False
        kernels = self.config.kernels
        return kernels == "triton" or (kernels == "auto" and not self.on_cpu)

    @property
    def micro_batch_size(self) -> int:
        """Sequences that one process runs at a time."""
        return self.config.train.micro_batch_size or self.config.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in one optimizer step."""
        return self.config.batch_size // (self.processes * self.micro_batch_size)

    @property
    def tokens(self) -> int:
        """Positions of one micro-batch."""
        return self.micro_batch_size * self.config.train.sequence_length

    @property
    def shard_size(self) -> int:
        """Processes that share one copy of weights, gradients and optimizer state."""
        engine = self.config.engine
        if engine.name == "deepspeed":
            return self.processes if engine.zero_stage else 1
        if engine.sharding == "hybrid":
            return engine.shard_size or self.local_processes
        return 1 if engine.sharding == "replicate" else self.processes

    @property
    def replicas(self) -> int:
        return self.processes // self.shard_size

    @cached_property
    def block(self) -> "Group":
        return Group(tuple(costs.block_shapes(self.config)), self.shard_size)

    @cached_property
    def root(self) -> "Group":
        return Group(tuple(costs.root_shapes(self.config)), self.shard_size)


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers together, each cut by rows into `shards` chunks of equal size;
    the last ones may be shorter, or empty."""

    shapes: tuple[tuple[int, ...], ...]
    shards: int

    @cached_property
    def elements(self) -> int:
        return sum(map(prod, self.shapes))

    @cached_property
    def padded(self) -> int:
        """Elements of all chunks, padding included: what is gathered and reduced."""
        return self.chunks * self.shards

    @cached_property
    def chunks(self) -> int:
        """Elements of one process's chunks; the first process has no padding among them."""
        return sum(-(-shape[0] // self.shards) * prod(shape[1:]) for shape in self.shapes)

    def local_shapes(self, index: int) -> list[tuple[int, ...]]:
        """Shapes of the chunks of process `index` of the group, padding left out."""
        local = []
        for rows, *others in self.shapes:
            chunk = -(-rows // self.shards)
            local.append((max(0, min(chunk, rows - index * chunk)), *others))
        return local
