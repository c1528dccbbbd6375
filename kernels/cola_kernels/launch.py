"""A kernel launch as a value: run on a GPU, or compiled ahead of time by the compile report."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cola_kernels.tiles import Config

Argument = Tensor | int | str


@dataclass(frozen=True)
class Launch:
    """A Triton kernel, its grid, and all of its arguments in the kernel's order."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Argument]
    config: Config

    def run(self) -> None:
        """Launch on the device of the tensors; an empty grid launches nothing."""
        if 0 in self.grid:
            return
        tensor = next(a for a in self.arguments.values() if isinstance(a, Tensor))
        with torch.cuda.device_of(tensor):
            self.kernel[self.grid](
                **self.arguments, num_warps=self.config.warps, num_stages=self.config.stages
            )


def unit_stride(x: Tensor) -> Tensor:
    """x, copied only if its last axis is not contiguous, as the kernels need it to be."""
    return x if x.stride(-1) == 1 else x.contiguous()
