"""mbarrier objects (PTX ISA 9.7.13.15): phases that end when all have arrived, and all bytes.

What a warp did before it arrived, who waits for the phase knows; what bulk loads wrote, too. No
proxy fence is asked for between `mbarrier.init` and the bulk load that counts on it.
"""

from dataclasses import dataclass

import numpy as np

from cola_kernels.tools.ptx.block import (
    Block,
    Operation,
    Threads,
    Wait,
    address,
    constant,
    decoder,
    source,
    uniform,
)
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.values import Array


@dataclass
class Mbarrier:
    """One object in shared memory.

    Attributes:
        agent: the bulk loads that it counts, as an agent of `Clocks`; their number is the phase's.
        phase: how many have ended.
        pending, bytes: what the phase still waits for.
        known, fenced: clocks of those who arrived in this phase.
        seen, seen_fenced: of those who arrived in the phase that ended last.
    """

    agent: int
    count: int
    pending: int
    known: Array
    fenced: Array
    seen: Array
    seen_fenced: Array
    phase: int = 0
    bytes: int = 0

    def arrive(self, block: Block, warp: int) -> None:
        if self.pending == 0:
            raise FaultError("more threads arrive at an mbarrier than it waits for")
        self.known = np.maximum(self.known, block.clocks.known[warp])
        self.fenced = np.maximum(self.fenced, block.clocks.fenced[warp])
        self.pending -= 1
        block.clocks.tick(np.array([warp]))
        self.end_phase()

    def end_phase(self) -> None:
        """If nothing is missing."""
        if self.pending or self.bytes:
            return
        self.phase += 1
        self.pending = self.count
        self.known[self.agent] = self.phase
        self.seen, self.seen_fenced = self.known, self.fenced
        self.known, self.fenced = np.zeros_like(self.known), np.zeros_like(self.fenced)

    def landed(self, size: int) -> None:
        """A bulk load's complete_tx."""
        self.bytes -= size
        self.end_phase()


def single(values: Array, what: str) -> int:
    if len(values) != 1:
        raise FaultError(f"{what} by {len(values)} threads at once")
    return int(values[0])


def at_address(block: Block, threads: Threads, where: int) -> Mbarrier:
    """The object there; looking at it is a read of its 8 bytes."""
    if where not in block.mbarriers:
        raise FaultError("no mbarrier there: not initialised, or invalidated")
    first = threads.numbers[:: max(len(threads.numbers) // len(threads.warps), 1)]
    block.shared.load(np.full(len(first), where, np.uint32), 8, first)
    return block.mbarriers[where]


@decoder("mbarrier")
def mbarrier(i: Instruction) -> Operation:
    name = i.parts[1]
    if name in ("init", "inval"):
        return create(i)
    if i.parts[1:3] == ["arrive", "expect_tx"] and i.operands[0] == "_":
        return arrive(i)
    if name == "try_wait" and "parity" in i.parts:
        return try_wait(i)
    raise FaultError(f"unknown instruction: {i}")


def create(i: Instruction) -> Operation:
    """`init` and `inval` write to the object's bytes."""
    of = address(i.operands[0], "32")
    count = constant(i.operands[1]) if i.parts[1] == "init" else 0

    def run(block: Block, threads: Threads) -> None:
        where = single(of(block, threads), str(i.parts[1]))
        block.shared.store(np.array([where]), np.zeros((1, 8), np.uint8), threads.numbers)
        old = block.mbarriers.pop(where, None)
        if i.parts[1] == "inval":
            if old is None or old.pending != old.count or old.bytes:
                raise FaultError("inval of an mbarrier that is not there, or within a phase")
            return
        agent = block.clocks.new_mbarrier(block.mbarriers_made)
        block.mbarriers_made += 1
        empty = np.zeros_like(block.clocks.known[0])
        block.mbarriers[where] = Mbarrier(
            agent, count, count, empty, empty.copy(), empty.copy(), empty.copy()
        )

    return run


def arrive(i: Instruction) -> Operation:
    """`arrive.expect_tx`, of one thread or of several."""
    of, amount = address(i.operands[1], "32"), source(i.operands[2], "32")

    def run(block: Block, threads: Threads) -> None:
        for number in threads.numbers:
            thread = block.threads(np.array([number]))
            barrier = at_address(block, thread, int(of(block, thread)[0]))
            barrier.bytes += uniform(amount(block, thread), "the bytes")
            barrier.arrive(block, int(number) // 32)

    return run


def try_wait(i: Instruction) -> Operation:
    """Until the phase of this parity has ended; then all that happened before its end is known."""
    of, parity = address(i.operands[1], "32"), source(i.operands[2], "32")

    def run(block: Block, threads: Threads) -> Wait | None:
        where = uniform(of(block, threads), "the mbarrier's address")
        awaited = uniform(parity(block, threads), "the mbarrier's parity") & 1
        barrier = at_address(block, threads, where)

        def ended() -> bool:
            return barrier.phase & 1 != awaited

        if not ended():
            what = f"{len(threads.numbers)} for phase {barrier.phase} of the mbarrier at {where}"
            return Wait(ended, what, repeat=True)
        clocks = block.clocks
        for warp in threads.warps:
            clocks.known[warp] = np.maximum(clocks.known[warp], barrier.seen)
            clocks.fenced[warp] = np.maximum(clocks.fenced[warp], barrier.seen_fenced)
        block.write(i.operands[0], threads, np.True_)
        return None

    return run
