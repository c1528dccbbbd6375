"""Bulk copies of tiles (TMA): `cp.async.bulk.tensor` and the tensor maps that they go by.

A map describes a matrix in global memory, and a box of it, which is a tile in shared memory (PTX
ISA 5.5, "Tensors"; 9.7.9.27). What of a box lies outside the matrix is loaded as zeros and is not
stored. A kernel makes its maps in shared memory and publishes them in global memory.
"""

import re
from dataclasses import dataclass, field

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
from cola_kernels.tools.ptx.mbarriers import at_address, single
from cola_kernels.tools.ptx.memory import Global
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.values import Array

ELEMENT_BYTES = {6: 2, 7: 4, 10: 2}  # fp16, fp32, bf16 in `tensormap.replace`'s numbering
SWIZZLED_BYTES = {0: 0, 1: 32, 2: 64, 3: 128}
BYTES = 128  # of a tensor map


@dataclass
class TensorMap:
    """A matrix and its box. Lists have the inner axis first, as in PTX.

    Attributes:
        address: of the first element in global memory.
        dim, box: elements along each axis of the matrix, and of a tile.
        stride: bytes from one row to the next, for each axis but the inner.
        acquired: the warp, and its clock, whose fence made the copy visible to bulk copies.
    """

    address: int = 0
    rank: int = 0
    dim: dict[int, int] = field(default_factory=dict)
    box: dict[int, int] = field(default_factory=dict)
    stride: dict[int, int] = field(default_factory=dict)
    element_stride: dict[int, int] = field(default_factory=dict)
    element: int = 0
    swizzle: int = 0
    acquired: tuple[int, int] | None = None

    def check(self) -> None:
        """What the hardware demands of a map.

        Raises:
            FaultError: the first demand that is not met.
        """
        axes = range(self.rank)
        if self.rank != 2 or self.element not in ELEMENT_BYTES:
            raise FaultError(f"a tensor map of rank {self.rank}, elements of type {self.element}")
        if any(self.element_stride.get(axis) != 1 for axis in axes):
            raise FaultError("a tensor map whose element strides are not 1")
        if self.address % 16 or self.stride[0] % 16:
            raise FaultError("a tensor map whose rows do not begin at multiples of 16 bytes")
        if not all(0 < self.box[axis] <= 256 and self.dim[axis] > 0 for axis in axes):
            raise FaultError(f"a tensor map of {self.dim} elements in boxes of {self.box}")
        inner = self.box[0] * ELEMENT_BYTES[self.element]
        if inner % 16 or (self.swizzle and inner > SWIZZLED_BYTES[self.swizzle]):
            raise FaultError(f"a tensor map's box of {inner} bytes, swizzled in {self.swizzle}")

    @property
    def size(self) -> int:
        """Bytes of a tile."""
        return self.box[0] * self.box[1] * ELEMENT_BYTES[self.element]

    def tile_addresses(self, start: int) -> Array:
        """Shared addresses of a tile's pairs of bytes, (rows, pairs), in the matrix's order."""
        span = SWIZZLED_BYTES[self.swizzle]
        if start % 128:
            raise FaultError("a tile whose address in shared memory is not a multiple of 128")
        width = self.box[0] * ELEMENT_BYTES[self.element]
        plain = start + np.arange(self.box[1])[:, None] * width + np.arange(0, width, 2)
        return plain ^ ((plain >> 7 & max(span // 16, 1) - 1) << 4)

    def inside(self, column: int, row: int) -> tuple[slice, slice, Array]:
        """Of a tile there: rows and bytes that lie in the matrix, and their global addresses."""
        element = ELEMENT_BYTES[self.element]
        rows = slice(max(-row, 0), max(min(self.box[1], self.dim[1] - row), 0))
        columns = slice(max(-column, 0), max(min(self.box[0], self.dim[0] - column), 0))
        r = np.arange(rows.start, max(rows.stop, rows.start), dtype=np.int64)[:, None] + row
        c = np.arange(columns.start * element, max(columns.stop * element, columns.start * element))
        where = self.address + r * self.stride[0] + (c + column * element)
        return rows, slice(columns.start * element, columns.stop * element), where

    def load(self, memory: Global, column: int, row: int) -> Array:
        """(rows, bytes) of the box at (row, column)."""
        tile = np.zeros((self.box[1], self.box[0] * ELEMENT_BYTES[self.element]), np.uint8)
        rows, columns, where = self.inside(column, row)
        if where.size:
            allocation, offset = memory.find(where.astype(np.uint64), 1, "bulk load")
            tile[rows, columns] = allocation.data[offset]
        return tile

    def store(self, memory: Global, column: int, row: int, tile: Array) -> None:
        rows, columns, where = self.inside(column, row)
        if where.size:
            allocation, offset = memory.find(where.astype(np.uint64), 1, "bulk store")
            memory.put(allocation, offset, tile[rows, columns])


@decoder("tensormap")
def tensor_map(i: Instruction) -> Operation:
    return publish(i) if "cp_fenceproxy" in i.parts else replace(i)


def replace(i: Instruction) -> Operation:
    """`tensormap.replace`: one field of a map in shared memory, by one thread."""
    name = i.parts[3]
    width = i.parts[-1][1:]
    of = address(i.operands[0], "64")
    axis = constant(i.operands[1]) if len(i.operands) == 3 else 0
    value = source(i.operands[-1], width)

    def run(block: Block, threads: Threads) -> None:
        where = single(of(block, threads), "tensormap.replace")
        at = np.array([where])
        block.shared.load(at, BYTES, threads.numbers)  # the other fields stay
        block.shared.store(at, np.zeros((1, BYTES), np.uint8), threads.numbers)
        fields = block.shared_maps.setdefault(where, TensorMap())
        number = uniform(value(block, threads), name)
        if name == "rank":
            fields.rank = number + 1
        elif name == "global_address":
            fields.address = number
        elif name in ("elemtype", "swizzle_mode"):
            setattr(fields, {"elemtype": "element", "swizzle_mode": "swizzle"}[name], number)
        elif name in ("interleave_layout", "fill_mode"):
            if number:
                raise FaultError(f"tensor map: {name} {number} is unknown here")
        else:
            table = {"global_dim": "dim", "box_dim": "box", "global_stride": "stride"}
            getattr(fields, table.get(name, name))[axis] = number

    return run


def publish(i: Instruction) -> Operation:
    """`tensormap.cp_fenceproxy`: a warp copies a map from shared to global memory."""
    into, of = address(i.operands[0], "64"), address(i.operands[1], "64")

    def run(block: Block, threads: Threads) -> None:
        # its .sync is taken to order the lanes of its warp: Triton before 3.9 has no other
        block.clocks.tick(threads.whole_warps())
        target = uniform(into(block, threads), "the tensor map's address")
        start = uniform(of(block, threads), "the tensor map's address")
        block.shared.load(np.array([start]), BYTES, threads.numbers[-1:])
        if start not in block.shared_maps:
            raise FaultError("no tensor map was made there")
        allocation, _ = block.memory.find(np.array([target], np.uint64), BYTES, "tensor map")
        if allocation.stores is None:
            raise FaultError(f"store of a tensor map to the input {allocation.name}")
        block.global_maps[target] = block.shared_maps.pop(start)
        block.global_maps[target].check()

    return run


def of_operand(block: Block, threads: Threads, text: str) -> TensorMap:
    """The map that `[%rd1` names, visible to this warp's bulk copies."""
    where = uniform(source(text.strip("[ "), "64")(block, threads), "the tensor map's address")
    if where not in block.global_maps:
        raise FaultError("a bulk copy by a tensor map that is not there")
    found = block.global_maps[where]
    warp = int(threads.warps[0])
    if found.acquired is None or block.clocks.known[warp, found.acquired[0]] < found.acquired[1]:
        raise FaultError("a bulk copy by a tensor map, and no fence.proxy.tensormap before it")
    return found


def bulk_copy(i: Instruction) -> Operation:
    """`cp.async.bulk.tensor.2d`, load or store, by each of the threads."""
    load = i.parts[5].startswith("shared")
    tile, tensor = (i.operands[0], i.operands[1]) if load else (i.operands[1], i.operands[0])
    match = re.fullmatch(r"\[\s*(%\w+)\s*,\s*(\{.*?\})\s*\]", tensor)
    if match is None or "2d" not in i.parts or (len(i.operands) != (3 if load else 2)):
        raise FaultError(f"unknown instruction: {i}")
    coordinates = [source(text, "32") for text in vector(match[2])]
    shared = address(tile, "32")
    barrier_at = address(i.operands[2], "32") if load else None

    def one(block: Block, thread: Threads) -> None:
        column, row = (int(c(block, thread).astype(np.int32)[0]) for c in coordinates)
        box = of_operand(block, thread, match[1])
        places = box.tile_addresses(int(shared(block, thread)[0]))
        warp = int(thread.warps[0])
        if barrier_at is not None:
            barrier = at_address(block, thread, int(barrier_at(block, thread)[0]))
            values = box.load(block.memory, column, row).view(np.uint16)
            phase = barrier.phase + 1
            block.shared.async_write(warp, barrier.agent, phase, places, values)
            barrier.landed(box.size)
        else:
            agent = block.clocks.bulk + warp
            values = block.shared.async_read(np.array([warp]), agent, places)
            block.uncommitted[agent] = 1
            box.store(block.memory, column, row, values.view(np.uint8))

    def run(block: Block, threads: Threads) -> None:
        for number in threads.numbers:
            one(block, block.threads(np.array([number])))

    return run
