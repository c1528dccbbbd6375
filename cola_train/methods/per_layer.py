"""The option of methods that can update each parameter in the backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.engines import ENGINES
from cola_train.methods.options import MethodOptions, Run
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class PerLayerOptions(MethodOptions):
    """A method whose optimizer state is so small that gradients are what is left to spare."""

    # update each weight in the backward pass and free its gradient: no clipping, no skipped steps
    per_layer: bool = False

    @property
    def updates_in_backward(self) -> bool:
        return self.per_layer

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        if self.per_layer:
            for why, instead in _reasons(run, topology):
                yield f"method.per_layer: {why}; use {instead}, or method.per_layer=false"


def _reasons(run: Run, topology: Topology) -> Iterator[tuple[str, str]]:
    """Why such a run cannot update in its backward pass, and what to set."""
    train = run.train
    if run.optim.clip is not None:
        yield (
            f"optim.clip={run.optim.clip} needs the norm of all gradients, which is known only "
            "after the updates",
            "optim.clip=null",
        )
    if train.non_finite == "skip":
        yield (
            "train.non_finite=skip leaves out a step whose gradients are not finite, which is "
            "known only after its updates",
            "train.non_finite=stop",
        )
    if train.spike_deviations is not None:
        yield (
            f"train.spike_deviations={train.spike_deviations} leaves out steps, and updates are "
            "made before that is decided",
            "train.spike_deviations=null",
        )
    if train.rollback_after is not None:
        yield (
            f"train.rollback_after={train.rollback_after} counts skipped steps, and none can be",
            "train.rollback_after=null",
        )
    rows = run.batch_size // topology.data
    if train.micro_batch_size is not None and rows > train.micro_batch_size:
        yield (
            f"train.micro_batch_size={train.micro_batch_size} adds up gradients of several "
            "micro-batches, and each is freed with its update",
            f"train.micro_batch_size={rows}",
        )
    if not run.engine.updates_in_backward:
        able = ", ".join(f"engine={name}" for name, of in ENGINES.items() if of.updates_in_backward)
        yield f"engine={run.engine.name} keeps gradients until its own step", able
