"""Bytes that collectives move in one optimizer step of one process.

Bytes are those of the whole message: what an all-gather returns, what a reduce-scatter or an
all-reduce takes. tests/test_scaling.py holds them to those of real runs.
"""

from dataclasses import dataclass

from cola_train.planning.job import FP32, Job


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step; `processes` take part in each."""

    kind: str  # all_gather | reduce_scatter | all_reduce
    what: str
    bytes: int
    processes: int

    @property
    def sent(self) -> float:
        """Bytes that a process sends in the ring algorithm."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * self.bytes * (self.processes - 1) / self.processes


def traffic(job: Job) -> list[Collective]:
    """A training step's collectives, those of single numbers left out."""
    if job.processes == 1:
        return []
    found = zero_traffic(job) if job.config.engine.name == "deepspeed" else fsdp_traffic(job)
    return [collective for collective in found if collective.bytes]


def fsdp_traffic(job: Job) -> list[Collective]:
    """Each group is gathered in its forward and, the root apart, again in its backward pass."""
    engine, L, S, R = job.config.engine, job.config.model.n_layers, job.shard_size, job.replicas
    padded = L * job.block.padded + job.root.padded
    times = job.accumulation
    syncs = times if engine.sync_every_micro_batch else 1
    again = L * job.block.padded if engine.reshard_after_forward else 0
    found = []
    if S > 1:
        found += [
            Collective("all_gather", "weights, forward", times * job.element * padded, S),
            Collective("all_gather", "weights, backward", times * job.element * again, S),
            Collective("reduce_scatter", "gradients", syncs * FP32 * padded, S),
        ]
    if R > 1:
        found.append(Collective("all_reduce", "gradients", syncs * FP32 * padded // S, R))
    return found


def zero_traffic(job: Job) -> list[Collective]:
    return []
