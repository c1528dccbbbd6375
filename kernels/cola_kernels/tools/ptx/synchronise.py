"""Barriers between threads, fences, and what the lanes of a warp tell each other."""

import numpy as np

from cola_kernels.tools.ptx.block import Block, Operation, Threads, Wait, decoder, source, uniform
from cola_kernels.tools.ptx.program import FaultError, Instruction


@decoder("bar")
def barrier(i: Instruction) -> Operation:
    """`bar.sync id{, threads}` and `bar.warp.sync` (PTX ISA 9.7.13.1, 2)."""
    if i.parts[1] == "warp":

        def warp(block: Block, threads: Threads) -> None:
            block.clocks.tick(threads.whole_warps())

        return warp
    if i.op != "bar.sync":
        raise FaultError(f"unknown instruction: {i}")
    which = source(i.operands[0], "32")
    count = source(i.operands[1], "32") if len(i.operands) > 1 else None

    def run(block: Block, threads: Threads) -> Wait | None:
        threads.whole_warps()
        number = uniform(which(block, threads), "the barrier's number")
        needed = block.program.threads
        if count is not None:
            needed = uniform(count(block, threads), "the barrier's count of threads")
        arrived = block.barriers.setdefault(number, [])
        arrived.append(threads)
        total = sum(len(t.numbers) for t in arrived)
        if total > needed:
            raise FaultError(f"{total} threads arrive at barrier {number}, which is for {needed}")
        if total == needed:
            block.clocks.synchronise(np.concatenate([t.warps for t in arrived]))
            block.barriers[number] = []
            return None
        what = f"{len(threads.numbers)} at barrier {number}, which is for {needed}"
        return Wait(lambda: block.barriers[number] is not arrived, what)

    return run


@decoder("griddepcontrol", "prefetch")
def nothing(i: Instruction) -> Operation:
    """One launch is executed, and without caches."""
    return lambda block, threads: None


@decoder("fence")
def fence(i: Instruction) -> Operation:
    if i.op in ("fence.proxy.async.shared::cta", "fence.proxy.async"):
        return lambda block, threads: block.clocks.fence(threads.warps)
    if i.op == "fence.proxy.tensormap::generic.acquire.gpu":
        of = source(i.operands[0].strip("[] ").partition("+")[0].strip(), "64")

        def acquire(block: Block, threads: Threads) -> None:
            address = uniform(of(block, threads), "the tensor map's address")
            if address not in block.global_maps:
                raise FaultError("a fence for a tensor map that is not there")
            warp = int(threads.whole_warps()[0])
            block.global_maps[address].acquired = (warp, int(block.clocks.issued[warp]))

        return acquire
    raise FaultError(f"unknown instruction: {i}")


@decoder("elect")
def elect(i: Instruction) -> Operation:
    """One lane of each warp; here its first."""
    lane, chosen = i.operands[0].split("|")

    def run(block: Block, threads: Threads) -> None:
        threads.whole_warps()
        block.write(lane, threads, np.uint32(0))
        block.write(chosen, threads, threads.numbers % 32 == 0)

    return run


@decoder("shfl")
def shuffle(i: Instruction) -> Operation:
    """`shfl.sync` in whole warps: the lane whose value each takes."""
    values, by = source(i.operands[1], "32"), source(i.operands[2], "32")
    mode = i.parts[2]
    if mode not in ("idx", "bfly") or i.operands[3] != "31" or "|" in i.operands[0]:
        raise FaultError(f"unknown instruction: {i}")

    def run(block: Block, threads: Threads) -> None:
        shape = (len(threads.whole_warps()), 32)
        lanes = np.broadcast_to(by(block, threads), shape[0] * 32).reshape(shape) & 31
        if mode == "bfly":
            lanes = lanes ^ np.arange(32, dtype=lanes.dtype)
        of = np.broadcast_to(values(block, threads), shape[0] * 32).reshape(shape)
        taken = np.take_along_axis(of, lanes.astype(np.int64), 1)
        block.write(i.operands[0], threads, taken.reshape(-1))

    return run
