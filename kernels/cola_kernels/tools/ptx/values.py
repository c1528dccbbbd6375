"""Registers hold bits, as unsigned numpy arrays; the floating-point formats that they stand for.

Sums and products are made in fp64 and rounded once, as the hardware's fused ones are. Approximate
instructions (`ex2.approx`, `div.full`, `tanh.approx`) are exact to fp32's rounding here.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
UNSIGNED: dict[str, Any] = {"8": np.uint8, "16": np.uint16, "32": np.uint32, "64": np.uint64}
SIGNED: dict[str, Any] = {"8": np.int8, "16": np.int16, "32": np.int32, "64": np.int64}
FLOATS = ("f16", "bf16", "f32")
WIDTHS = {"pred": "8", "f16": "16", "bf16": "16", "f16x2": "32", "bf16x2": "32"}


def bits_of(kind: str) -> str:
    """The width of a type, as the keys of UNSIGNED: u32 -> 32."""
    return WIDTHS.get(kind) or kind[1:]


def floats(bits: Any, kind: str) -> Array:
    """The values of `bits` as fp32, exactly."""
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(values: Any, kind: str) -> Array:
    """The bits of fp32 or fp64 values in the format `kind`, rounded to nearest, ties to even."""
    if kind == "f16":
        return np.asarray(values).astype(np.float16).view(np.uint16)
    single = np.asarray(values).astype(np.float32).view(np.uint32)
    if kind == "f32":
        return single
    odd = (single >> np.uint32(16)) & np.uint32(1)
    high = ((single + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    nan = (single & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, np.uint16(0x7FFF), high)


def unpack(bits: Any) -> tuple[Array, Array]:
    """The low and the high half of 32 or 64 bits."""
    half = UNSIGNED[str(bits.dtype.itemsize * 4)]
    shift = bits.dtype.type(bits.dtype.itemsize * 4)
    return bits.astype(half), (bits >> shift).astype(half)


def pack(low: Any, high: Any) -> Array:
    """Two 16- or 32-bit halves as one value."""
    double = UNSIGNED[str(low.dtype.itemsize * 16)]
    return low.astype(double) | (high.astype(double) << double(low.dtype.itemsize * 8))
