"""Loads, stores and `cp.async` (PTX ISA 9.7.9): between registers, shared and global memory."""

from typing import Any

import numpy as np

from cola_kernels.tools.ptx.block import (
    Block,
    Operation,
    Threads,
    address,
    constant,
    decoder,
    source,
    uniform,
    vector,
)
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.tensor_maps import bulk_copy
from cola_kernels.tools.ptx.values import UNSIGNED, Array, bits_of


@decoder("ld")
def load(i: Instruction) -> Operation:
    width = bits_of(i.parts[-1])
    names, size = vector(i.operands[0]), int(width) // 8
    if i.parts[1] == "param":
        return parameter(names[0], i.operands[1].strip("[] "), width)
    shared = i.parts[1].startswith("shared")
    of = address(i.operands[1], "32" if shared else "64")

    def run(block: Block, threads: Threads) -> None:
        at = of(block, threads)
        if shared:
            data = block.shared.load(at, size * len(names), threads.numbers)
        else:
            data = block.memory.load(at, size * len(names))
        values = np.ascontiguousarray(data).view(UNSIGNED[width])
        for column, name in enumerate(names):
            # a register for a byte has 16 bits
            value = values[:, column]
            block.write(name, threads, value.astype(np.uint16) if size == 1 else value)

    return run


def parameter(name: str, of: str, width: str) -> Operation:
    def run(block: Block, threads: Threads) -> None:
        values = block.arguments.values
        if of.startswith("%"):  # an address that `Block.symbol` has given
            at = uniform(block.read(of, threads), "the parameter's address")
            value = at if of.startswith("%rd") else [*values.values()][at]
        elif of in values:
            value = values[of]
        else:
            raise FaultError(f"parameter {of} is not given")
        # a 64-bit register takes a signed 32-bit parameter with its sign
        into = "64" if name.startswith("%rd") else width
        block.write(name, threads, UNSIGNED[into](value & ((1 << int(into)) - 1)))

    return run


@decoder("st")
def store(i: Instruction) -> Operation:
    width = bits_of(i.parts[-1])
    size = int(width) // 8
    shared = i.parts[1].startswith("shared")
    of = address(i.operands[0], "32" if shared else "64")
    sources = [source(text, "16" if size == 1 else width) for text in vector(i.operands[1])]

    def run(block: Block, threads: Threads) -> None:
        columns = [np.broadcast_to(s(block, threads), len(threads.numbers)) for s in sources]
        values = np.stack(columns, 1).astype(UNSIGNED[width]).view(np.uint8)
        if shared:
            block.shared.store(of(block, threads), values, threads.numbers)
        else:
            block.memory.store(of(block, threads), values)

    return run


@decoder("cp")
def copy(i: Instruction) -> Operation:
    """`cp.async`, its groups, and those of bulk stores; bulk copies are in `tensor_maps`."""
    if i.op.startswith(("cp.async.cg.shared", "cp.async.ca.shared")):
        return copy_async(i)
    if i.op.startswith("cp.async.bulk.tensor"):
        return bulk_copy(i)
    bulk = "bulk" in i.parts
    if "commit_group" in i.parts:

        def commit(block: Block, threads: Threads) -> None:
            first = block.clocks.bulk if bulk else block.clocks.copies
            agents = first + threads.warps
            block.clocks.issued[agents] += 1
            for agent in agents:
                block.uncommitted.pop(int(agent), None)

        return commit
    if "wait_group" in i.parts:
        pending = constant(i.operands[0])

        def wait(block: Block, threads: Threads) -> None:
            first = block.clocks.bulk if bulk else block.clocks.copies
            block.clocks.wait(threads.warps, first, pending)

        return wait
    raise FaultError(f"unknown instruction: {i}")


def copy_async(i: Instruction) -> Operation:
    """Copies up to the source's size, and fills up with zeros."""
    into, of = address(i.operands[0], "32"), address(i.operands[1], "64")
    size = constant(i.operands[2])
    given = source(i.operands[3], "32") if len(i.operands) > 3 else None

    def run(block: Block, threads: Threads) -> None:
        starts = of(block, threads)
        count: Any = np.uint32(size) if given is None else given(block, threads)
        present = np.broadcast_to(count, starts.shape)
        if ((present != 0) & (present != size)).any():
            raise FaultError("cp.async of a part of its size")
        values: Array = np.zeros((len(starts), size), np.uint8)
        full = present == size
        if full.any():
            values[full] = block.memory.load(starts[full], size)
        block.shared.copy_in(into(block, threads), values, threads.numbers)
        for agent in block.clocks.copies + threads.warps:
            block.uncommitted[int(agent)] = 1

    return run
