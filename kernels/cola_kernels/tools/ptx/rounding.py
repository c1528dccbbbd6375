"""What a correct kernel may differ by: fp64 values with bounds of the error made in computing them.

Accumulation in fp32 of K products is off by at most K 2^-23 of the products' absolute sum, in
whatever order and with truncation, as tensor cores do; rounding to a format by half of its last
place; every other fp32 operation by 2^-23 of its result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP32 = 2.0**-23
# half of the last place, relative, and of the least subnormal number
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
LEAST = {torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25, torch.float32: 2.0**-150}


@dataclass(frozen=True)
class Bounded:
    """`value`, and how far a kernel's own may be from it; both fp64."""

    value: Tensor
    error: Tensor

    @property
    def largest(self) -> Tensor:
        return self.value.abs() + self.error

    def __add__(self, other: "Bounded") -> "Bounded":
        value, error = self.value + other.value, self.error + other.error
        return Bounded(value, error + FP32 * (value.abs() + error))

    def __mul__(self, other: "Bounded") -> "Bounded":
        error = self.value.abs() * other.error + self.error * other.largest
        value = self.value * other.value
        return Bounded(value, error + FP32 * (value.abs() + error))

    def rounded(self, dtype: torch.dtype) -> "Bounded":
        return Bounded(self.value, self.error + UNIT[dtype] * self.largest + LEAST[dtype])


def exactly(x: Tensor) -> Bounded:
    """A kernel's input."""
    return Bounded(x.double(), torch.zeros_like(x, dtype=torch.float64))


def product(a: Tensor, b: Tensor) -> Bounded:
    """a (m, k) b (k, n), of inputs."""
    a, b = a.double(), b.double()
    return Bounded(a @ b, a.shape[1] * FP32 * (a.abs() @ b.abs()))


def silu(x: Bounded) -> Bounded:
    """x sigmoid(x), whose slope is at most 1.1. Its exponential is off by as many last places as
    its argument is large."""
    value = x.value * torch.sigmoid(x.value)
    return Bounded(value, 1.1 * x.error + FP32 * (4 + x.largest) * value.abs())


def silu_slope(x: Bounded) -> Bounded:
    """sigmoid(x) (1 + x (1 - sigmoid(x))), whose own slope is at most 0.5."""
    s = torch.sigmoid(x.value)
    value = s * (1 + x.value * (1 - s))
    return Bounded(value, 0.5 * x.error + FP32 * (8 + x.largest) * s * (1 + x.largest))
