"""Bytes that collectives move in one optimizer step of one process.

Bytes are those of the whole message: what an all-gather returns, what a reduce-scatter or an
all-reduce takes. tests/test_scaling.py holds them to those of real runs.
"""

from dataclasses import dataclass

from cola_train.planning.run import FP32, Job
from cola_train.planning.zero import Shapes, Zero


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step; `processes` take part in each."""

    kind: str  # all_gather | reduce_scatter | all_reduce
    what: str
    bytes: int
    processes: int
    strided: bool = False  # among processes a shard group apart, rather than neighbours

    @property
    def sent(self) -> float:
        """Bytes that a process sends in the ring algorithm."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * self.bytes * (self.processes - 1) / self.processes


def traffic(job: Job) -> list[Collective]:
    """A training step's collectives, those of single numbers left out."""
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
    if engine.sharding != "full":  # also among one replica
        found.append(Collective("all_reduce", "gradients", syncs * FP32 * padded // S, R, S > 1))
    return found


def zero_traffic(job: Job) -> list[Collective]:
    """Gradients travel as fp32, as our JSON asks; stages 0 and 1 reduce after the last micro-batch,
    the others after each. Stage 2 of DeepSpeed 0.19 all-reduces, though each process keeps a shard.
    """
    zero, D, e, times = Zero(job), job.processes, job.element, job.accumulation
    P = zero.parameters
    if zero.stage == 0:
        return [Collective("all_reduce", "gradients", FP32 * P, D)]
    if zero.stage in (1, 2):
        reduced = zero.aligned if zero.stage == 1 else times * P
        found = [Collective("all_reduce", "gradients", FP32 * reduced, D)]
        if D > 1:
            found.append(Collective("all_gather", "updated weights", e * zero.aligned, D))
        return found
    found = [
        Collective("reduce_scatter", "gradients", times * FP32 * zero.padded(zero.all_shapes), D)
    ]
    if D > 1:
        small = zero.persistent(zero.all_shapes, padded=True)
        large = zero.padded(zero.all_shapes) - small
        found += [
            Collective("all_gather", "weights, forward", times * e * large, D),
            Collective("all_gather", "weights, backward", times * e * gathered_again(job, zero), D),
            Collective("all_gather", "updated small weights", e * small, D),
        ]
    return found


def gathered_again(job: Job, zero: Zero) -> int:
    """Elements of large parameters that are not kept from the forward to the backward pass."""

    def large(shapes: Shapes) -> int:
        return zero.padded(shapes) - zero.persistent(shapes, padded=True)

    freed = sum(not zero.stays_gathered(i) for i in range(job.config.model.n_layers))
    ends = [job.root.shapes[0], job.root.shapes[-1]]
    root = [shape for shape, stays in zip(ends, zero.root_stays_gathered, strict=True) if not stays]
    return freed * large(job.block.shapes) + large(root)
