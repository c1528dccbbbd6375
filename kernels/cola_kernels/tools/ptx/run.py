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
from cola_kernels.tools.ptx.execute import Execution, decode
from cola_kernels.tools.ptx.memory import Allocation, Global
from cola_kernels.tools.ptx.program import FaultError, Program, parse


@dataclass(frozen=True)
class Run:
    """What was executed.

    Attributes:
        stores: of each output, how often each element was stored to.
        padding: the same of what else lies in the outputs' storages.
    """

    blocks: int
    instructions: int
    seconds: float
    stores: dict[str, Tensor]
    padding: dict[str, Tensor]


def compiled(launch: Launch, arch: str) -> Any:
    """As Triton compiles the launch for `arch`; `.asm["ptx"]` and `.metadata`."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        source_of(launch),
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options={"num_warps": launch.config.warps, "num_stages": launch.config.stages},
    )


def execute(
    launch: Launch,
    arch: str,
    outputs: Iterable[str],
    blocks: Iterable[int] | None = None,
    mutate: Callable[[str], str] | None = None,
    kernel: Any = None,
) -> Run:
    """Compile a launch on CPU tensors and run its PTX.

    Args:
        outputs: names of the arguments that the kernel writes.
        blocks: numbers of those to run; all by default.
        mutate: the PTX is what this makes of it.
        kernel: what `compiled` gave for this launch or one like it, to compile nothing.

    Raises:
        FaultError: something that a GPU would do wrong, or might.
    """
    start = time.perf_counter()
    kernel = kernel or compiled(launch, arch)
    text = kernel.asm["ptx"]
    program = parse(mutate(text) if mutate else text)
    x, y, z = (*launch.grid, 1, 1)[:3]
    total = x * y * z
    memory, outputs = Global(), list(outputs)
    places = allocate(memory, launch, outputs)
    size = max(kernel.metadata.global_scratch_size * total, 1)
    scratch = memory.add("scratch", np.zeros(size, np.uint8), writable=True).base
    arguments = Arguments(
        memory, values(program, launch, places, scratch), (x, y, z), kernel.metadata.shared, {}
    )
    operations = decode(program)
    numbers = range(total) if blocks is None else list(blocks)
    steps = 0
    for number in numbers:
        steps += Execution(program, operations, arguments, number).run().step
    stores = {name: counted(tensor(launch, name), places) for name in outputs}
    return Run(
        blocks=len(numbers),
        instructions=steps,
        seconds=time.perf_counter() - start,
        stores={name: of for name, (of, _) in stores.items()},
        padding={name: rest for name, (_, rest) in stores.items()},
    )


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
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
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


def counted(of: Tensor, places: dict[int, Allocation]) -> tuple[Tensor, Tensor]:
    """How often each element of a tensor was stored to, and the rest of its storage."""
    stores = places[of.untyped_storage().data_ptr()].stores
    assert stores is not None
    elements = torch.from_numpy(stores).view(-1, of.element_size())
    # every byte of an element is stored by one access, or something is wrong
    low, high = elements.min(1).values, elements.max(1).values
    if not torch.equal(low, high):
        raise FaultError("a part of an element was stored")
    inside = torch.as_strided(low, of.shape, of.stride(), of.storage_offset()).clone()
    rest = torch.ones_like(low, dtype=torch.bool)
    torch.as_strided(rest, of.shape, of.stride(), of.storage_offset()).fill_(False)
    return inside, low[rest]
