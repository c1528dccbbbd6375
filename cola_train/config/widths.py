"""Widths that are stored wider, with zeros, so that rows of weights and activations are aligned.

d_ff and rank alone: what is beyond them stays zero in training, by itself (docs/architecture.md).
Checkpoints, counts and formulas of FLOPs have the width, memory and traffic what is stored.
"""

from typing import ClassVar

ALIGNED = 16  # elements: 32 bytes in bf16, what GEMMs of NVIDIA GPUs want of a row


class Width(int):
    """Features of an axis of a weight. Any other int is stored as it is."""

    multiple: ClassVar[int]  # of which a width is stored that is not aligned

    @property
    def stored(self) -> int:
        """The width with its zeros."""
        if self % ALIGNED == 0:
            return int(self)
        return -(-self // self.multiple) * self.multiple


class InnerWidth(Width):
    """d_ff, the width inside an MLP: 5461 is stored as 5504, which is half tiles of 128."""

    multiple = 64


class RankWidth(Width):
    """The width of a bottleneck."""

    multiple = ALIGNED


def stored(width: int) -> int:
    """The width with its zeros, if it has any."""
    return width.stored if isinstance(width, Width) else width
