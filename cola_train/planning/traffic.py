"""Bytes that collectives move in one optimizer step of one process.

Bytes are those of the whole message: what an all-gather or an all-to-all returns, what a
reduce-scatter or an all-reduce takes. Each engine's planner lists them; tests hold them to those of
real runs.
"""

from dataclasses import dataclass

from cola_train.planning.run import Run


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step; `processes` take part in each."""

    kind: str  # all_gather | reduce_scatter | all_reduce | all_to_all
    what: str
    bytes: int
    processes: int
    strided: bool = False  # among processes a shard group apart, rather than neighbours
    of_update: bool = False  # the optimizer's, which no kernels of the model hide

    @property
    def sent(self) -> float:
        """Bytes that a process sends in the ring algorithm."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * self.bytes * (self.processes - 1) / self.processes


def traffic(run: Run) -> list[Collective]:
    """A training step's collectives, those of single numbers left out."""
    found: list[Collective] = run.planner.traffic(run)
    return [collective for collective in found if collective.bytes]
