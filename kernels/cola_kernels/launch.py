"""A kernel launch as a value: run on a GPU, compiled ahead of time, or only recorded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cola_kernels.support import interpreting
from cola_kernels.tiles import Config

Argument = Tensor | int | float

_recorded: list["Launch"] | None = None  # what `gathered` gets instead of launching
_compiled: dict[tuple[Any, ...], Any] = {}


@dataclass(frozen=True)
class Launch:
    """A Triton kernel, its grid, and all of its arguments in the kernel's order: the tensors, then
    what follows from their shapes.

    dependent: may begin before the launch before it ends (`gdc_wait` in the kernel waits for that).
    """

    kernel: Any
    grid: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    numbers: tuple[int | float, ...]
    config: Config
    dependent: bool = False

    @property
    def arguments(self) -> dict[str, Argument]:
        """By name."""
        values = (*self.tensors, *self.numbers)
        return dict(zip(self.kernel.arg_names, values, strict=True))

    def run(self) -> None:
        """Launch on the device of the tensors; an empty grid launches nothing."""
        if 0 in self.grid:
            return
        if _recorded is not None:
            _recorded.append(self)
        elif interpreting():
            self.kernel[self.grid](*self.tensors, *self.numbers, **self.options)
        else:
            device = self.tensors[0].get_device()
            # -1: no GPU's, but the driver is a stand-in
            if device == -1 or device == torch.cuda.current_device():
                self._run(device)
            else:
                with torch.cuda.device(device):
                    self._run(device)

    @property
    def options(self) -> dict[str, int]:
        """Of Triton's compiler."""
        options = {"num_warps": self.config.warps, "num_stages": self.config.stages}
        if self.dependent:
            options["launch_pdl"] = True
        return options

    def prepare(self, device: int) -> Any:
        """The kernel compiled for the current device, whose index is `device`: once, and from
        then on looked up by what shapes and dtypes decide, where Triton would deduce it anew."""
        key = (self.kernel, device, self.tensors[0].dtype, self.numbers, self.config)
        compiled = _compiled.get(key)
        if compiled is None:
            compiled = _compiled[key] = self.kernel.warmup(
                *self.tensors, *self.numbers, grid=self.grid, **self.options
            )
        return compiled

    def _run(self, device: int) -> None:
        import triton

        # TMA descriptors are built in scratch memory; the setting is each thread's own
        triton.set_allocator(_scratch)
        self.prepare(device)[(*self.grid, 1, 1)](*self.tensors, *self.numbers)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    # torch aligns to 512 bytes, and gives the memory to nothing on this stream before its time
    return torch.empty(size, dtype=torch.int8, device="cuda")


@contextmanager
def gathered() -> Iterator[list[Launch]]:
    """Launches, which are not made."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def padded(x: Tensor, rows: bool = False) -> Tensor:
    """x, row-major, in columns (with `rows` in rows too) of a multiple of 16, zeros where it had
    none: copied only if it is not so already.

    TMA wants rows on 16-byte boundaries, and machines without it vectors of 16 bytes. A model's
    widths are multiples of 16 anyway.
    """
    height, width = x.shape
    more = (-width % 16, -height % 16 if rows else 0)
    if any(more):
        return torch.nn.functional.pad(x, (0, more[0], 0, more[1]))
    if x.is_contiguous() and x.storage_offset() * x.element_size() % 16 == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def rounded(width: int) -> int:
    """The next multiple of 16."""
    return -(-width // 16) * 16
