"""Global memory with its bounds, and shared memory with its races."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cola_kernels.tools.ptx.clocks import Clocks
from cola_kernels.tools.ptx.program import FaultError
from cola_kernels.tools.ptx.values import Array

SHARED_BASE = 1024  # where a kernel's own shared memory begins; 1 KiB is the system's
GRANULE = 2  # bytes for which shared memory remembers who touched them last


@dataclass
class Allocation:
    """Bytes of global memory.

    Attributes:
        stores: how often each byte was stored to; None where the kernel may only read.
    """

    name: str
    base: int
    data: Array
    stores: Array | None = None


class Global:
    """Allocations, with gaps between them so large that no wrong index crosses one unseen."""

    GAP = 1 << 40

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []

    def add(self, name: str, data: Array, writable: bool) -> Allocation:
        """`data` (bytes) becomes the allocation's memory itself; it is aligned to 256 bytes."""
        base = (len(self.allocations) + 1) * self.GAP
        stores = np.zeros(len(data), np.uint8) if writable else None
        self.allocations.append(Allocation(name, base, data, stores))
        return self.allocations[-1]

    def find(self, address: Array, width: int, what: str) -> tuple[Allocation, Array]:
        """The one allocation of these accesses, and each one's offset in it."""
        first, last = int(address.min()), int(address.max()) + width
        number = first // self.GAP - 1
        if not 0 <= number < len(self.allocations):
            raise FaultError(f"{what} at {first:#x}, where nothing is allocated")
        allocation = self.allocations[number]
        if last > allocation.base + len(allocation.data):
            raise FaultError(
                f"{what} out of bounds: {last - allocation.base - len(allocation.data)} bytes past "
                f"the end of {allocation.name}, or before the start of another"
            )
        if (address % np.uint64(width)).any():
            raise FaultError(
                f"{what} of {width} bytes at an address that is not a multiple of them"
            )
        return allocation, (address - np.uint64(allocation.base)).astype(np.int64)

    def load(self, address: Array, width: int) -> Array:
        """(n) addresses -> (n, width) bytes."""
        allocation, offset = self.find(address, width, "load")
        return allocation.data[offset[:, None] + np.arange(width)]

    def store(self, address: Array, values: Array) -> None:
        """(n) addresses, (n, width) bytes."""
        allocation, offset = self.find(address, values.shape[1], "store")
        self.put(allocation, offset[:, None] + np.arange(values.shape[1]), values)

    @staticmethod
    def put(allocation: Allocation, index: Array, values: Array) -> None:
        """Store bytes at indices of an allocation, and count the stores."""
        if allocation.stores is None:
            raise FaultError(f"store to the input {allocation.name}")
        allocation.data[index] = values
        np.add.at(allocation.stores, index.reshape(-1), 1)


class Shared:
    """A block's shared memory. Accesses that no barrier orders are faults (see `Clocks`).

    Attributes, for each granule:
        writer, number: the agent that wrote it last, and its number of that access.
        thread: the thread that did, if a warp did.
        read: (readers, granules), the number of each agent's last read.
    """

    def __init__(self, size: int, clocks: Clocks) -> None:
        granules = -(-size // GRANULE)
        self.clocks = clocks
        self.data = np.full(granules * GRANULE, 0xFF, np.uint8)
        self.writer = np.full(granules, clocks.nobody, np.int16)
        self.number = np.ones(granules, np.int32)
        self.thread = np.full(granules, -1, np.int16)
        self.read = np.zeros((clocks.readers, granules), np.int32)

    def place(self, address: Array, width: int) -> tuple[Array, Array]:
        """(n) addresses -> indices of bytes (n, width) and of granules (n, granules)."""
        start = address.astype(np.int64) - SHARED_BASE
        if (start < 0).any() or (start + width > len(self.data)).any():
            raise FaultError("access out of bounds of the block's shared memory")
        if (start % width).any():
            raise FaultError(
                f"shared access of {width} bytes at an address that is no multiple of them"
            )
        granules = (start // GRANULE)[:, None] + np.arange(max(width // GRANULE, 1))
        return start[:, None] + np.arange(width), granules

    def load(self, address: Array, width: int, threads: Array) -> Array:
        """Generic loads of `threads`: (n) addresses -> (n, width) bytes."""
        index, granules = self.place(address, width)
        warp = (threads // 32)[:, None]
        self.ordered_after_writes(warp, granules, "read")
        own = (self.writer[granules] == warp) & (self.thread[granules] != threads[:, None])
        if own.any() and (own & (self.number[granules] == self.clocks.issued[warp])).any():
            raise FaultError(
                "a thread reads what another of its warp wrote, without a bar.warp.sync"
            )
        self.read[warp, granules] = self.clocks.issued[warp]
        return self.data[index]

    def store(self, address: Array, values: Array, threads: Array) -> None:
        """Generic stores of `threads`: (n) addresses, (n, width) bytes."""
        index, granules = self.place(address, values.shape[1])
        warp = (threads // 32)[:, None]
        self.ordered_after_all(warp, granules)
        self.record(granules, warp, self.clocks.issued[warp])
        self.thread[granules] = threads[:, None]
        self.data[index] = values

    def copy_in(self, address: Array, values: Array, threads: Array) -> None:
        """Stores of `cp.async`: as `store`, but no warp may look before it has waited for them."""
        index, granules = self.place(address, values.shape[1])
        warp = (threads // 32)[:, None]
        self.ordered_after_all(warp, granules)
        agent = self.clocks.copies + warp
        self.record(granules, agent, self.clocks.issued[agent] + 1)
        self.data[index] = values

    def async_read(self, warps: Array, agent: int, start: Array) -> Array:
        """Pairs of bytes at `start` (addresses), read by `agent`, an async one, for `warps`."""
        granules = self.pairs(start)
        each = warps.reshape(-1, *[1] * granules.ndim)
        self.ordered_after_writes(each, granules, f"read by {self.clocks.name(agent)}")
        self.visible(each, granules)
        self.read[agent, granules] = self.clocks.issued[agent] + 1
        return self.data.view(np.uint16)[granules]

    def async_write(self, warp: int, agent: int, number: int, start: Array, values: Array) -> None:
        """Write pairs of bytes at `start` for `warp`, known by `agent`'s `number`."""
        granules = self.pairs(start)
        self.ordered_after_all(warp, granules)
        self.visible(warp, granules)
        self.record(granules, agent, number)
        self.data.view(np.uint16)[granules] = values

    def pairs(self, start: Array) -> Array:
        granules = (start - SHARED_BASE) // GRANULE
        if granules.min() < 0 or granules.max() >= len(self.writer):
            raise FaultError("access out of bounds of the block's shared memory")
        return granules

    def record(self, granules: Array, agent: Any, number: Any) -> None:
        self.writer[granules] = agent
        self.number[granules] = number

    def ordered_after_writes(self, warp: Any, granules: Array, what: str) -> None:
        writer = self.writer[granules]
        late = self.number[granules] > self.clocks.known[warp, writer]
        if what == "overwriting":
            late &= writer != self.clocks.nobody
        if late.any():
            name = self.clocks.name(int(np.broadcast_to(writer, late.shape)[late][0]))
            raise FaultError(
                f"shared memory: {what} of what was written by {name}, and no wait between"
            )

    def ordered_after_all(self, warp: Any, granules: Array) -> None:
        self.ordered_after_writes(warp, granules, "overwriting")
        read = self.read[:, granules]
        known = self.clocks.known[warp, : self.clocks.readers]
        known = known.reshape(-1, 1, self.clocks.readers).transpose(2, 0, 1)
        late = read > (known if read.ndim == 3 else known[..., 0])
        if late.any():
            name = self.clocks.name(int(np.nonzero(late)[0][0]))
            raise FaultError(
                f"shared memory: overwriting what is read by {name}, and no wait between"
            )

    def visible(self, warp: Any, granules: Array) -> None:
        """Generic writes need a proxy fence before an async access."""
        writer = self.writer[granules]
        generic = (writer < self.clocks.bulk) | (
            (writer >= self.clocks.copies) & (writer < self.clocks.nobody)
        )
        if (generic & (self.number[granules] > self.clocks.fenced[warp, writer])).any():
            raise FaultError(
                "shared memory: an async access to what threads wrote, and no fence.proxy.async "
                "between"
            )
