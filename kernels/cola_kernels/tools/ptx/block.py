"""The state of one block of threads, and what instructions may do to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cola_kernels.tools.ptx.clocks import Clocks
from cola_kernels.tools.ptx.memory import SHARED_BASE, Global, Shared
from cola_kernels.tools.ptx.program import FaultError, Instruction, Program
from cola_kernels.tools.ptx.values import UNSIGNED, Array

if TYPE_CHECKING:
    from cola_kernels.tools.ptx.mbarriers import Mbarrier
    from cola_kernels.tools.ptx.tensor_maps import TensorMap


@dataclass(frozen=True)
class Threads:
    """Threads that execute one instruction together.

    Attributes:
        index: of their places in a register, a slice where they are consecutive.
        numbers: of the threads, ascending.
    """

    index: slice | Array
    numbers: Array

    @property
    def warps(self) -> Array:
        return np.unique(self.numbers // 32)

    def whole_warps(self) -> Array:
        """Their warps, for an instruction that all threads of a warp execute together."""
        warps = self.warps
        if len(warps) * 32 != len(self.numbers):
            raise FaultError("executed by a part of a warp")
        return warps


@dataclass(frozen=True)
class Wait:
    """Why a strand cannot go on, and how to see that it can.

    Attributes:
        repeat: the instruction then; without it the strand goes on after it.
    """

    ready: Callable[[], bool]
    what: str
    repeat: bool = False


@dataclass(frozen=True)
class Arguments:
    """A launch as its blocks see it.

    Attributes:
        values: of each parameter.
        grid: blocks along x, y, z.
        shared: bytes of shared memory a block.
    """

    memory: Global
    values: dict[str, int]
    grid: tuple[int, int, int]
    shared: int


class Block:
    """One block: registers, shared memory, and who waits for what."""

    def __init__(self, program: Program, arguments: Arguments, number: int) -> None:
        x, y, _ = arguments.grid
        self.program = program
        self.arguments = arguments
        self.memory = arguments.memory
        self.clocks = Clocks(program.threads // 32)
        self.shared = Shared(arguments.shared, self.clocks)
        self.registers: dict[str, Array] = {}
        thread = np.arange(program.threads, dtype=np.uint32)
        self.special = {
            "%tid.x": thread,
            "%tid.y": thread * 0,
            "%tid.z": thread * 0,
            "%laneid": thread % 32,
            "%ctaid.x": np.full_like(thread, number % x),
            "%ctaid.y": np.full_like(thread, number // x % y),
            "%ctaid.z": np.full_like(thread, number // (x * y)),
            **{
                f"%nctaid.{axis}": np.full_like(thread, size)
                for axis, size in zip("xyz", arguments.grid, strict=True)
            },
        }
        self.step = 0
        # of a register: the step of its last use, and the warpgroups whose wgmma writes to it
        self.used: dict[str, int] = {}
        self.accumulating: dict[str, set[int]] = {}
        self.wgmma_fence: dict[int, int] = {}  # step of each warpgroup's last wgmma.fence
        self.wgmma_groups: dict[int, list[list[str]]] = {}  # registers of each group, oldest first
        self.uncommitted: dict[int, int] = {}  # accesses of an agent since its last commit
        self.barriers: dict[int, list[Threads]] = {}
        self.mbarriers: dict[int, Mbarrier] = {}
        self.mbarriers_made = 0
        self.shared_maps: dict[int, TensorMap] = {}
        self.global_maps: dict[int, TensorMap] = {}
        self._threads: dict[bytes, Threads] = {}

    def threads(self, numbers: Array) -> Threads:
        key = numbers.tobytes()
        if key not in self._threads:
            first, last = int(numbers[0]), int(numbers[-1]) + 1
            index = slice(first, last) if last - first == len(numbers) else numbers
            self._threads[key] = Threads(index, numbers)
        return self._threads[key]

    def read(self, name: str, threads: Threads) -> Array:
        """A register of these threads, unsigned."""
        if name in self.special:
            return self.special[name][threads.index]
        if name not in self.registers:
            raise FaultError(f"reads {name}, which was never written")
        if self.accumulating:
            self.not_accumulating(name, threads, "read")
        return self.registers[name][threads.index]

    def write(self, name: str, threads: Threads, value: Any) -> None:
        if name == "_":
            return
        if self.accumulating:
            self.not_accumulating(name, threads, "written")
        if name not in self.registers:
            self.registers[name] = np.zeros(self.program.threads, value.dtype)
        self.used[name] = self.step
        self.registers[name][threads.index] = value

    def not_accumulating(self, name: str, threads: Threads, what: str) -> None:
        groups = self.accumulating.get(name)
        if groups and groups & {int(w) // 4 for w in threads.warps}:
            raise FaultError(f"{name} is {what} under an unfinished wgmma")

    def symbol(self, name: str, width: str) -> int | None:
        """The address of shared memory or of a parameter: of 32 bits its place among them, of 64
        its value, which is also a tensor map's generic address; None of no symbol."""
        if name == "global_smem":
            return SHARED_BASE
        values = self.arguments.values
        if width == "32" and name in values:
            return list(values).index(name)
        return values.get(name)


Operation = Callable[[Block, Threads], Wait | None]
Source = Callable[[Block, Threads], Any]

# decoders of instructions, by the first part of the opcode
DECODERS: dict[str, Callable[[Instruction], Operation]] = {}


def decoder(*names: str) -> Callable[..., Callable[[Instruction], Operation]]:
    """Registers a function that turns instructions of these names into operations."""

    def register(decode: Callable[[Instruction], Operation]) -> Callable[[Instruction], Operation]:
        DECODERS.update(dict.fromkeys(names, decode))
        return decode

    return register


def source(text: str, width: str) -> Source:
    """An operand: a register, a constant, or the address of a symbol."""
    dtype = UNSIGNED[width]
    if text.startswith("%"):
        return lambda block, threads: block.read(text, threads)
    if text.startswith(("0f", "0d")):
        constant = dtype(int(text[2:], 16))
    elif text[0].isdigit() or text[0] == "-":
        constant = dtype(int(text, 0) & ((1 << int(width)) - 1))
    else:

        def of_symbol(block: Block, threads: Threads) -> Any:
            address = block.symbol(text, width)
            if address is None:
                raise FaultError(f"unknown symbol {text}")
            return dtype(address)

        return of_symbol
    return lambda block, threads: constant


def vector(text: str) -> list[str]:
    """`{%r1, %r2}` -> two names; one name -> itself."""
    return [part.strip() for part in text.strip("{} \t").split(",")]


def address(text: str, width: str) -> Source:
    """`[%rd1 + 16]`, of as many elements as there are threads."""
    base, _, offset = text.strip("[] \t").partition("+")
    of = source(base.strip(), width)
    add = UNSIGNED[width](int(offset, 0) & ((1 << int(width)) - 1) if offset.strip() else 0)

    def at(block: Block, threads: Threads) -> Any:
        return np.broadcast_to(of(block, threads) + add, len(threads.numbers))

    return at


def constant(text: str) -> int:
    """An operand that is part of the instruction itself.

    Raises:
        FaultError: it is none.
    """
    try:
        return int(text, 0)
    except ValueError:
        raise FaultError(f"{text} is no constant") from None


def uniform(value: Any, what: str) -> int:
    """A value that must be the same in all threads."""
    value = np.atleast_1d(value)
    if (value != value[0]).any():
        raise FaultError(f"{what} differs between the threads")
    return int(value[0])
