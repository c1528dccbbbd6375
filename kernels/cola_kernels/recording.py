"""The launches that a computation makes, found without making them: for the compile report, and to
compile before training what its first step would."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cola_kernels.launch import Launch, gathered
from cola_kernels.register import IMPLEMENTATIONS
from cola_kernels.support import interpreting, target, targeting
from cola_kernels.tiles import Target


class _Implementations(TorchDispatchMode):
    """Runs ops on meta tensors as on real ones, where torch would ask for shapes alone."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return IMPLEMENTATIONS.get(func, func)(*args, **(kwargs or {}))


def record(function: Callable[[], object], of: Target) -> list[Launch]:
    """The launches that `function` would make on a GPU; all its tensors are on the meta device."""
    with targeting(of), gathered() as launches, _Implementations():
        function()
    return launches


def warm_up(function: Callable[[], object], device: torch.device) -> int:
    """Compile, for a GPU, the kernels that `function` launches on meta tensors; returns how many
    launches it makes.

    A first launch would compile in the middle of a backward pass, or of the capture of a CUDA
    graph, which fails.
    """
    launches = record(function, target("warm_up", device))
    if not interpreting():
        with torch.cuda.device(device):
            for launch in launches:
                launch.prepare(torch.cuda.current_device())
    return len(launches)
