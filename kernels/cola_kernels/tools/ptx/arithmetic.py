"""Instructions on registers: integers, floating point, conversions, predicates (PTX ISA 9.7)."""

from typing import Any

import numpy as np

from cola_kernels.tools.ptx.block import (
    Block,
    Operation,
    Threads,
    constant,
    decoder,
    source,
    vector,
)
from cola_kernels.tools.ptx.program import FaultError, Instruction
from cola_kernels.tools.ptx.values import (
    FLOATS,
    SIGNED,
    UNSIGNED,
    Array,
    bits_of,
    floats,
    pack,
    rounded,
    unpack,
)

COMPARISONS: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
LOGIC: dict[str, Any] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip
REAL: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "fma": lambda x, y, z: x * y + z, "max": np.fmax, "ex2": np.exp2,
    "rsqrt": lambda x: 1 / np.sqrt(x), "neg": np.negative,
}  # fmt: skip


def signed(values: Any, kind: str) -> Any:
    """The numbers that bits of type `kind` are."""
    return values.view(SIGNED[kind[1:]]) if kind[0] == "s" else values


def binary(width: str, i: Instruction, apply: Any) -> Operation:
    """`apply` on the bits of all operands but the first, which takes the result."""
    sources = [source(text, width) for text in i.operands[1:]]

    def run(block: Block, threads: Threads) -> None:
        block.write(i.operands[0], threads, apply(*(s(block, threads) for s in sources)))

    return run


@decoder("and", "or", "xor", "not")
def logic(i: Instruction) -> Operation:
    return binary(bits_of(i.parts[-1]), i, LOGIC[i.parts[0]])


@decoder("mov")
def move(i: Instruction) -> Operation:
    into, of = i.operands
    width = bits_of(i.parts[1])
    half = str(int(width) // 2)
    if into.startswith("{"):
        whole, names = source(of, width), vector(into)

        def split(block: Block, threads: Threads) -> None:
            for name, part in zip(names, unpack(whole(block, threads)), strict=True):
                block.write(name, threads, part)

        return split
    if of.startswith("{"):
        parts = [source(text, half) for text in vector(of)]

        def join(block: Block, threads: Threads) -> None:
            block.write(into, threads, pack(*(part(block, threads) for part in parts)))

        return join
    if i.parts[1] == "pred":
        truth = np.bool_(int(of) != 0)
        return lambda block, threads: block.write(into, threads, truth)
    return binary(width, i, lambda x: x)


@decoder("cvta")
def to_generic(i: Instruction) -> Operation:
    """Addresses of global memory and of parameters are generic ones."""
    return binary("64", i, lambda x: x)


@decoder("add", "sub", "mul", "mad", "fma", "min", "max", "div", "rem", "neg")
def arithmetic(i: Instruction) -> Operation:
    kind = i.parts[-1]
    return real(i) if kind.removesuffix("x2") in FLOATS else integer(i)


@decoder("ex2", "rsqrt")
def real(i: Instruction) -> Operation:
    """In fp64 where the result would be rounded twice otherwise."""
    kind, apply = i.parts[-1], REAL.get(i.parts[0])
    if apply is None or not set(i.parts[1:-1]) <= {"rn", "approx", "full", "ftz"}:
        raise FaultError(f"unknown instruction: {i}")
    exact = np.float32 if i.parts[0] in ("add", "sub", "mul", "max") else np.float64

    def one(*bits: Any) -> Array:
        return rounded(apply(*(floats(x, kind).astype(exact) for x in bits)), kind)

    def single(*bits: Any) -> Array:
        return apply(*(x.view(np.float32) for x in bits)).view(np.uint32)

    def two(*bits: Any) -> Array:
        low, high = zip(*(unpack(x) for x in bits), strict=True)
        return pack(one(*low), one(*high))

    if kind.endswith("x2"):
        kind = kind.removesuffix("x2")
        return binary("32", i, two)
    return binary(bits_of(kind), i, single if kind == "f32" and exact is np.float32 else one)


def integer(i: Instruction) -> Operation:
    """Wrapping, except that signed 32-bit ones that leave 32 bits are faults: addresses are made
    of them."""
    name, kind = i.parts[0], i.parts[-1]
    width = bits_of(kind)
    wide = "wide" in i.parts
    if not set(i.parts[1:-1]) <= {"lo", "wide"}:
        raise FaultError(f"unknown instruction: {i}")

    def exact(values: Any) -> Any:
        # 32 bits fit 64; 64 bits wrap there as they would here
        values = signed(values, kind)
        return values if width == "64" else values.astype(np.int64)

    def narrow(values: Any) -> Any:
        if wide:
            return values.view(np.uint64)
        if kind == "s32" and (values != values.astype(np.int32)).any():
            raise FaultError("32-bit signed arithmetic overflows")
        return values.astype(UNSIGNED[width])

    def divide(x: Any, y: Any) -> Any:
        if (y == 0).any():
            raise FaultError("division by zero")
        return np.abs(x) // np.abs(y) * np.sign(x) * np.sign(y)

    def remainder(x: Any, y: Any) -> Any:
        return x - divide(x, y) * y

    table: dict[str, Any] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": divide,
        "rem": remainder, "min": np.minimum, "max": np.maximum, "neg": np.negative,
    }  # fmt: skip
    if name != "mad":
        apply = table[name]
        return binary(width, i, lambda *xs: narrow(apply(*(exact(x) for x in xs))))
    x, y = (source(text, width) for text in i.operands[1:3])
    z = source(i.operands[3], "64" if wide else width)

    def multiply_add(block: Block, threads: Threads) -> None:
        product = narrow(exact(x(block, threads)) * exact(y(block, threads)))
        addend = z(block, threads)
        total = product + addend if wide else narrow(exact(product) + exact(addend))
        block.write(i.operands[0], threads, total)

    return multiply_add


@decoder("shl", "shr")
def shift(i: Instruction) -> Operation:
    kind = i.parts[-1]
    width = bits_of(kind)
    x, by = source(i.operands[1], width), source(i.operands[2], "32")
    limit = int(width)

    def run(block: Block, threads: Threads) -> None:
        values, places = signed(x(block, threads), kind), by(block, threads)
        clamped = np.minimum(places, np.uint32(limit - 1)).astype(values.dtype)
        if i.parts[0] == "shl":
            moved = np.where(places < limit, values << clamped, values.dtype.type(0))
        elif kind[0] == "s":
            moved = values >> clamped
        else:
            moved = np.where(places < limit, values >> clamped, values.dtype.type(0))
        block.write(i.operands[0], threads, moved.astype(UNSIGNED[width]))

    return run


@decoder("bfe")
def bit_field(i: Instruction) -> Operation:
    start, length = constant(i.operands[2]), constant(i.operands[3])
    x = source(i.operands[1], "32")
    fill = np.uint32((0xFFFFFFFF << length) & 0xFFFFFFFF)

    def run(block: Block, threads: Threads) -> None:
        field = (x(block, threads) >> np.uint32(start)) & ~fill
        if i.parts[1] == "s32":
            field = np.where((field >> np.uint32(length - 1)) & np.uint32(1), field | fill, field)
        block.write(i.operands[0], threads, field)

    return run


@decoder("setp")
def set_predicate(i: Instruction) -> Operation:
    _, name, kind = i.parts
    x, y = (source(text, bits_of(kind)) for text in i.operands[1:3])
    number = floats if kind in FLOATS else signed

    def run(block: Block, threads: Threads) -> None:
        a, b = number(x(block, threads), kind), number(y(block, threads), kind)
        block.write(i.operands[0], threads, np.asarray(COMPARISONS[name](a, b)))

    return run


@decoder("selp")
def select(i: Instruction) -> Operation:
    x, y = (source(text, bits_of(i.parts[-1])) for text in i.operands[1:3])

    def run(block: Block, threads: Threads) -> None:
        chosen = block.read(i.operands[3], threads)
        block.write(i.operands[0], threads, np.where(chosen, x(block, threads), y(block, threads)))

    return run


@decoder("cvt")
def convert(i: Instruction) -> Operation:
    into, of = i.parts[-2:]
    if into in ("f16x2", "bf16x2"):
        half = into.removesuffix("x2")
        return binary("32", i, lambda high, low: pack(*(
            rounded(floats(x, of), half) for x in (low, high)
        )))  # fmt: skip

    if (of in FLOATS and into not in FLOATS) or not set(i.parts[1:-2]) <= {"rn"}:
        raise FaultError(f"unknown instruction: {i}")

    def apply(bits: Any) -> Array:
        if into in FLOATS:
            numbers = floats(bits, of) if of in FLOATS else signed(bits, of).astype(np.float64)
            return rounded(numbers, into)
        return signed(bits, of).astype(UNSIGNED[bits_of(into)])

    return binary(bits_of(of), i, apply)
