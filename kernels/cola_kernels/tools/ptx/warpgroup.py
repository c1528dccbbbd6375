"""wgmma (PTX ISA 9.7.15): the tensor cores of sm_90, whose operands lie in shared memory.

Four warps, a warpgroup, execute each instruction together. It is asynchronous: it reads shared
memory as an agent of its own, and its accumulators are not to be touched before the wait.
"""

import functools
import re
from typing import Any

import numpy as np

from cola_kernels.tools.ptx.block import (
    Block,
    Operation,
    Threads,
    constant,
    decoder,
    source,
    uniform,
    vector,
)
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.values import Array, floats

SWIZZLED_BYTES = {1: 128, 2: 64, 3: 32}  # by the descriptor's mode


@decoder("wgmma")
def wgmma(i: Instruction) -> Operation:
    if i.parts[1] == "mma_async":
        return multiply(i)
    return {"fence": order, "commit_group": commit, "wait_group": wait}[i.parts[1]](i)


def groups(threads: Threads) -> Array:
    """The numbers of these threads' warpgroups, all four warps of each."""
    warps = threads.whole_warps()
    found = np.unique(warps // 4)
    if len(found) * 4 != len(warps):
        raise FaultError("executed by a part of a warpgroup")
    return found


def order(i: Instruction) -> Operation:
    def run(block: Block, threads: Threads) -> None:
        for group in groups(threads):
            block.wgmma_fence[int(group)] = block.step

    return run


def commit(i: Instruction) -> Operation:
    def run(block: Block, threads: Threads) -> None:
        for group in groups(threads):
            agent = block.clocks.wgmma + int(group)
            block.clocks.issued[agent] += 1
            block.uncommitted.pop(agent, None)
            open_groups = block.wgmma_groups.setdefault(int(group), [[]])
            open_groups.append([])

    return run


def wait(i: Instruction) -> Operation:
    pending = constant(i.operands[0])

    def run(block: Block, threads: Threads) -> None:
        block.clocks.wait(threads.warps, block.clocks.wgmma, pending)
        for group in groups(threads):
            in_flight = block.wgmma_groups.setdefault(int(group), [[]])
            while len(in_flight) - 1 > pending:
                del in_flight[0]
            kept = {name for registers in in_flight for name in registers}
            for name in list(block.accumulating):
                if name not in kept:
                    block.accumulating[name].discard(int(group))
                if not block.accumulating[name]:
                    del block.accumulating[name]

    return run


@functools.cache
def tile_offsets(rows: int, mode: int, leading: int, stride: int, transposed: bool) -> Array:
    """(rows, 16) offsets in bytes of an operand's elements before the swizzle.

    K-major: groups of 8 rows lie `stride` bytes apart. Transposed: as many rows lie side by side
    as the swizzle is wide, then `leading` bytes apart; groups of 8 along K lie `stride` apart.
    """
    width = SWIZZLED_BYTES[mode]
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if not transposed:
        return row // 8 * stride + row % 8 * width + 2 * k
    wide = width // 2
    return row // wide * leading + k // 8 * stride + k % 8 * width + 2 * (row % wide)


def element_addresses(descriptor: int, rows: int, transposed: bool) -> Array:
    """Addresses of the (rows, 16) elements that a matrix descriptor names."""
    mode = descriptor >> 62
    if mode not in SWIZZLED_BYTES:
        raise FaultError("a wgmma descriptor without a swizzle")
    if descriptor >> 49 & 7:
        raise FaultError("a wgmma descriptor with a base offset")
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    plain = start + tile_offsets(rows, mode, leading, stride, transposed)
    return plain ^ ((plain >> 7 & SWIZZLED_BYTES[mode] // 16 - 1) << 4)


def multiply(i: Instruction) -> Operation:
    """d (64, n) = a (64, 16) b^T (n, 16) + d, or without + d, for each warpgroup."""
    match = re.search(r"\.m64n(\d+)k16\.f32\.(b?f16)\.\2$", i.op)
    if match is None or not i.operands[1].startswith("%rd"):
        raise FaultError(f"unknown instruction: {i}")
    columns, kind = int(match[1]), match[2]
    names = vector(i.operands[0])
    descriptors = [source(text, "64") for text in i.operands[1:3]]
    scale_a, scale_b, *transposed = (constant(text) for text in i.operands[4:])
    if (scale_a, scale_b) != (1, 1) or len(names) != columns // 2:
        raise FaultError(f"unknown instruction: {i}")
    thread = np.arange(128)
    row = thread // 32 * 16 + thread % 32 // 4
    # register j of a thread: 8 columns for each four registers, of two rows 8 apart
    register = np.arange(len(names))[:, None]
    rows = row + 8 * (register // 2 % 2)
    at = 8 * (register // 4) + register % 2 + 2 * (thread % 4)

    def one(block: Block, group: int) -> None:
        threads = block.threads(np.arange(128 * group, 128 * group + 128))
        agent = block.clocks.wgmma + group
        warps = np.arange(4 * group, 4 * group + 4)

        def operand(which: int, height: int) -> Array:
            value = uniform(descriptors[which](block, threads), "a wgmma descriptor")
            where = element_addresses(value, height, bool(transposed[which]))
            return floats(block.shared.async_read(warps, agent, where), kind)

        product: Any = (operand(0, 64) @ operand(1, columns).T)[rows, at]
        keep = accumulates(block, i.operands[3], threads)
        add(block, names, threads, product, keep, group)
        block.uncommitted[agent] = 1

    def run(block: Block, threads: Threads) -> None:
        for group in groups(threads):
            one(block, int(group))

    return run


def accumulates(block: Block, text: str, threads: Threads) -> bool:
    if text.startswith("%"):
        return bool(uniform(block.read(text, threads), "the predicate of wgmma"))
    return text in ("1", "true")


def add(
    block: Block, names: list[str], threads: Threads, product: Array, keep: bool, group: int
) -> None:
    """Into the accumulators, of which other instructions may know nothing until the wait."""
    fence = block.wgmma_fence.get(group, -1)
    for name, value in zip(names, product, strict=True):
        running = block.accumulating.setdefault(name, set())
        if fence < 0 or (group not in running and block.used.get(name, 0) > fence):
            raise FaultError(f"{name} may be in use: no wgmma.fence since it was written")
        if name not in block.registers:
            block.registers[name] = np.zeros(block.program.threads, np.uint32)
        target = block.registers[name][threads.index].view(np.float32)
        target[:] = target + value if keep else value
        running.add(group)
    block.wgmma_groups.setdefault(group, [[]])[-1].extend(names)
