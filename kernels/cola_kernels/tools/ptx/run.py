"""A launch, compiled for an architecture and executed block by block; its tensors are written."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.tools.compile_report import source_of
from cola_kernels.tools.ptx.block import Arguments
from cola_kernels.tools.ptx.cases import Case
from cola_kernels.tools.ptx.execute import Execution, decode
from cola_kernels.tools.ptx.memory import Allocation, Global
from cola_kernels.tools.ptx.program import FaultError, Program, parse


@dataclass(frozen=True)
class Run:
    """What was executed.

    Attributes:
        lines: of the PTX that some thread executed.
    """

    launch: Launch
    blocks: int
    instructions: int
    seconds: float
    lines: set[int]
    places: dict[int, Allocation]

    def stores(self, name: str) -> tuple[Tensor, Tensor]:
        """How often each element of an output was stored to; the same of what else its storage
        holds, flat.

        Raises:
            FaultError: a part of an element was stored.
        """
        of = tensor(self.launch, name)
        counts = self.places[of.untyped_storage().data_ptr()].stores
        assert counts is not None
        each = torch.from_numpy(counts).view(-1, of.element_size())
        count = each[:, 0].contiguous()
        if not bool((each == count[:, None]).all()):
            raise FaultError(f"{name}: a part of an element was stored")
        rest = torch.ones_like(count, dtype=torch.bool)
        rest.as_strided(of.shape, of.stride(), of.storage_offset()).fill_(False)
        return count.as_strided(of.shape, of.stride(), of.storage_offset()), count[rest]


def compiled(launch: Launch, arch: str) -> Any:
    """As Triton compiles the launch for `arch`; `.asm["ptx"]` and `.metadata`."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        source_of(launch),
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options=launch.options,
    )


def execute(
    launch: Launch,
    arch: str,
    outputs: Iterable[str],
    blocks: Iterable[int] | None = None,
    mutate: Callable[[str], str] | None = None,
) -> Run:
    """Compile a launch on CPU tensors and run its PTX.

    Args:
        outputs: names of the arguments that the kernel writes.
        blocks: numbers of those to run; all by default.
        mutate: the PTX is what this makes of it.

    Raises:
        FaultError: something that a GPU would do wrong, or might.
    """
    start = time.perf_counter()
    kernel = compiled(launch, arch)
    text = kernel.asm["ptx"]
    program = parse(mutate(text) if mutate else text)
    x, y, z = (*launch.grid, 1, 1)[:3]
    total = x * y * z
    memory, outputs = Global(), list(outputs)
    places = allocate(memory, launch, outputs)
    size = max(kernel.metadata.global_scratch_size * total, 1)
    scratch = memory.add("scratch", np.zeros(size, np.uint8), writable=True).base
    arguments = Arguments(
        memory, values(program, launch, places, scratch), (x, y, z), kernel.metadata.shared
    )
    operations = decode(program)
    numbers = range(total) if blocks is None else list(blocks)
    steps, lines = 0, set[int]()
    for number in numbers:
        execution = Execution(program, operations, arguments, number)
        steps += execution.run().step
        lines |= execution.executed
    return Run(launch, len(numbers), steps, time.perf_counter() - start, lines, places)


def tensor(launch: Launch, name: str) -> Tensor:
    value = launch.arguments[name]
    assert isinstance(value, Tensor), f"{name} is no tensor"
    return value


def allocate(memory: Global, launch: Launch, outputs: list[str]) -> dict[int, Allocation]:
    """Every storage of the launch's tensors, by its address here; views share theirs."""
    written = {tensor(launch, name).untyped_storage().data_ptr() for name in outputs}
    places: dict[int, Allocation] = {}
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in places:
                data = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
                places[storage.data_ptr()] = memory.add(name, data, storage.data_ptr() in written)
    return places


def values(
    program: Program, launch: Launch, places: dict[int, Allocation], scratch: int
) -> dict[str, int]:
    """The kernel's parameters: arguments that are no constants, the scratch memory, and zeros."""
    given: list[int] = []
    signature = source_of(launch).signature
    for name, value in launch.arguments.items():
        if signature[name] == "constexpr":
            continue
        if isinstance(value, Tensor):
            base = places[value.untyped_storage().data_ptr()].base
            given.append(base + int(value.storage_offset()) * value.element_size())
        else:
            given.append(int(value))
    given.append(scratch)
    missing = len(program.parameters) - len(given)
    if missing < 0:
        raise FaultError(f"{len(given)} arguments for {len(program.parameters)} parameters")
    return dict(zip(program.parameters, given + [0] * missing, strict=True))


def check(case: Case, run: Run, whole: bool = True) -> None:
    """What was stored is right, and each element of a rectangle was stored once.

    whole: the rectangle is the output; without it as many tiles as one block has.

    Raises:
        FaultError: an element that is wrong, or stored too often, or never, or out of place.
    """
    places: list[tuple[Tensor, Tensor]] = []
    for name in case.outputs:
        counts, outside = run.stores(name)
        if outside.any():
            raise FaultError(f"{name}: stored outside of the matrix")
        rows, columns = counts.any(1).nonzero()[:, 0], counts.any(0).nonzero()[:, 0]
        places.append((rows, columns))
        if whole and (len(rows), len(columns)) != tuple(counts.shape):
            raise FaultError(f"{name}: {len(rows)} rows, {len(columns)} columns were stored")
        tile = counts[rows][:, columns]
        if tile.numel() == 0 or tile.min() != 1 or tile.max() != 1:
            raise FaultError(f"{name}: elements were not stored once each")
    for name, (rows, columns) in zip(case.outputs, places, strict=True):
        right = case.expected(rows, columns)[name]
        found = tensor(run.launch, name)[rows][:, columns].double()
        wrong = ~((found - right.value).abs() <= right.error)
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise FaultError(
                f"{name}: {int(wrong.sum())} elements are wrong; at ({int(rows[row])}, "
                f"{int(columns[column])}) {float(found[row, column])}, not "
                f"{float(right.value[row, column])} +- {float(right.error[row, column])}"
            )
