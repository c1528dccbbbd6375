"""Random numbers that can be drawn again in any part, and on any device.

torch's generators give a CPU and two kinds of GPU other numbers, and a part only with all that
comes before it. Here each entry of a matrix is a function of a key and of its own place.
"""

import hashlib
from math import pi

import torch
from torch import Tensor

# of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers
STEP, FIRST, SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
DIGITS = 24  # of an fp32 number between 0 and 1


def normal_rows(shape: tuple[int, int], rows: slice, key: str, device: torch.device) -> Tensor:
    """Those rows of a matrix of that shape with entries N(0, 1), fp32; equal on all devices to the
    rounding of logarithm and cosine (Box and Muller)."""
    columns = shape[1]
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little", signed=True)
    place = torch.arange(rows.start * columns, rows.stop * columns, device=device)
    bits = _mixed(place.mul_(STEP).add_(seed))
    radius = _shifted(bits, 64 - DIGITS).add_(1).float().mul_(2.0**-DIGITS)  # in (0, 1]
    angle = bits.bitwise_and_(2**DIGITS - 1).float().mul_(2 * pi * 2.0**-DIGITS)
    return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_()).view(-1, columns)


def _mixed(bits: Tensor) -> Tensor:
    """int64, in place: each of 64 bits depends on all of them."""
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(FIRST)
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(SECOND)
    return bits.bitwise_xor_(_shifted(bits, 31))


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)
