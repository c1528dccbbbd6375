"""How many processes a run has, and what each is for: a value, also of a cluster elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """`world` processes, `local_world` of them on each machine, in groups that share a batch.

    Processes of one tensor- or context-parallel group work on the same sequences.
    """

    world: int
    local_world: int
    rank: int = 0
    local_rank: int = 0
    tensor: int = 1
    context: int = 1
    expert: int = 1

    @property
    def data(self) -> int:
        """Processes with different batches."""
        return self.world // (self.tensor * self.context)
