"""Matrices of 8 x 8 in a warp's registers: `ldmatrix`, `stmatrix`, `mma.sync` (PTX ISA 9.7.14).

In such a matrix of 16-bit elements lane l holds row l / 4, columns 2 (l % 4) and the next.
"""

import re

import numpy as np

from cola_kernels.tools.ptx.block import Block, Operation, Threads, address, decoder, source, vector
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.values import Array, floats, pack, unpack

LANE = np.arange(32)
ROW, COLUMN = LANE // 4, 2 * (LANE % 4)


@decoder("ldmatrix")
def load_matrices(i: Instruction) -> Operation:
    """Lane 8 m + r of a warp has the address of row r of matrix m."""
    names, of, transposed = vector(i.operands[0]), address(i.operands[1], "32"), "trans" in i.parts
    used = 8 * len(names)

    def run(block: Block, threads: Threads) -> None:
        warps = len(threads.whole_warps())
        at = of(block, threads).reshape(warps, 32)[:, :used].reshape(-1)
        who = threads.numbers.reshape(warps, 32)[:, :used].reshape(-1)
        rows = np.ascontiguousarray(block.shared.load(at, 16, who)).view(np.uint16)
        matrices = rows.reshape(warps, len(names), 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        for m, name in enumerate(names):
            pair = pack(matrices[:, m, ROW, COLUMN], matrices[:, m, ROW, COLUMN + 1])
            block.write(name, threads, pair.reshape(-1))

    return run


@decoder("stmatrix")
def store_matrices(i: Instruction) -> Operation:
    of, names = address(i.operands[0], "32"), vector(i.operands[1])
    if "trans" in i.parts:
        raise FaultError(f"unknown instruction: {i}")
    sources = [source(name, "32") for name in names]
    used = 8 * len(names)

    def run(block: Block, threads: Threads) -> None:
        warps = len(threads.whole_warps())
        matrices = np.empty((warps, len(names), 8, 8), np.uint16)
        for m, of_register in enumerate(sources):
            value = np.broadcast_to(of_register(block, threads), len(threads.numbers))
            low, high = unpack(value.reshape(warps, 32))
            matrices[:, m, ROW, COLUMN], matrices[:, m, ROW, COLUMN + 1] = low, high
        at = of(block, threads).reshape(warps, 32)[:, :used].reshape(-1)
        who = threads.numbers.reshape(warps, 32)[:, :used].reshape(-1)
        block.shared.store(at, matrices.reshape(-1, 8).view(np.uint8), who)

    return run


@decoder("mma")
def multiply(i: Instruction) -> Operation:
    """d = a b + c in fp32, a (16, 16) and b (16, 8) of 16-bit elements, one product a warp."""
    match = re.fullmatch(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(b?f16)\.\1\.f32", i.op)
    if match is None:
        raise FaultError(f"unknown instruction: {i}")
    kind = match[1]
    into, a_names, b_names, c_names = (vector(text) for text in i.operands)
    row, column = LANE // 4, LANE % 4

    def run(block: Block, threads: Threads) -> None:
        warps = len(threads.whole_warps())

        def halves(name: str) -> list[Array]:
            value = block.read(name, threads).reshape(warps, 32)
            return [floats(half, kind) for half in unpack(value)]

        a = np.empty((warps, 16, 16), np.float32)
        b = np.empty((warps, 16, 8), np.float32)
        for j, name in enumerate(a_names):
            r, k = row + 8 * (j & 1), 2 * column + 8 * (j >> 1)
            a[:, r, k], a[:, r, k + 1] = halves(name)
        for j, name in enumerate(b_names):
            k = 2 * column + 8 * j
            b[:, k, row], b[:, k + 1, row] = halves(name)
        product = a @ b
        c_of = [source(name, "32")(block, threads) for name in c_names]
        for j, (name, c) in enumerate(zip(into, c_of, strict=True)):
            part = product[:, row + 8 * (j >> 1), 2 * column + (j & 1)].reshape(-1)
            block.write(name, threads, (c.view(np.float32) + part).view(np.uint32))

    return run
