"""The options of FSDP2."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cola_train.config.fields import PositiveInt
from cola_train.engines.options import EngineOptions
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class FSDPOptions(EngineOptions):
    """PyTorch's FSDP2."""

    sharding: Literal["full", "hybrid", "replicate"] = "full"  # hybrid: sharded within a node
    shard_size: PositiveInt | None = None  # hybrid: processes of one copy; null: a node's
    reshard_after_forward: bool = True  # false: faster, keeps gathered weights until the backward
    sync_every_micro_batch: bool = True  # false: reduce gradients once a step, whole until then

    implementation = "cola_train.engines.fsdp.engine:FSDPEngine"
    planner = "cola_train.planning.fsdp"
    capturable = True
    updates_in_backward = True

    def copy_size(self, topology: Topology) -> int:
        """Processes that share one copy of weights, gradients and optimizer state."""
        if self.sharding == "hybrid":
            return self.shard_size or min(topology.local_world, topology.world)
        return 1 if self.sharding == "replicate" else topology.world

    def problems(self, topology: Topology) -> Iterator[str]:
        if self.sharding != "hybrid" and self.shard_size is not None:
            yield (
                f"engine.shard_size: {self.shard_size} has no effect with engine.sharding="
                f"{self.sharding}; use engine.sharding=hybrid, or leave it out"
            )
        if topology.world % self.copy_size(topology):
            yield (
                f"engine.shard_size: {self.copy_size(topology)} does not divide the "
                f"{topology.world} processes; use a divisor"
            )
