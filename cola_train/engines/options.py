"""What every engine's options hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from cola_train.config.fields import Seconds
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class EngineOptions:
    """How parameters, gradients and optimizer state are spread over processes."""

    name: str
    timeout_seconds: Seconds = 600.0  # of a collective

    implementation: ClassVar[str]  # "module:class" of an `engines.base.Engine`
    capturable: ClassVar[bool] = False  # by a CUDA graph, on one process (train.cuda_graph)
    updates_in_backward: ClassVar[bool] = False  # can: see `MethodOptions.updates_in_backward`
    planner: ClassVar[str]  # the module of planning/ that knows its memory and traffic

    @property
    def cuts_matrices(self) -> str | None:
        """Why the optimizer gets no matrices, neither whole nor cut by rows, and what to use."""
        return None

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled on a GPU if `train.compile` leaves it open."""
        return True

    def problems(self, topology: Topology) -> Iterator[str]:
        """What is wrong with the options on that many processes."""
        yield from ()

    def problems_here(self) -> Iterator[str]:
        """What this machine lacks."""
        yield from ()
