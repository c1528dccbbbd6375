"""What updates of whole matrices cost a process, as options of optimizers and methods count it.

Such an optimizer is many small kernels, one after the other; an update element by element is one
pass over memory, which `planning.step_time` knows. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Product(NamedTuple):
    """A matmul, (rows, depth) x (depth, columns)."""

    rows: int
    columns: int
    depth: int
    adds: bool = False  # the result to another matrix

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.columns * self.depth


class Kernels(NamedTuple):
    """Kernels that pass over a tensor, or over what is small beside it."""

    launches: int
    passes: int  # how often one of them reads or writes the tensor, or one of its shape


# of optim/matrices.py
ADAM = Kernels(8, 19)  # `adam`: over R
DECAY = Kernels(1, 2)  # `decay`: over W
LIMIT = Kernels(12, 1)  # an update's norm and `limited`: over the update


@dataclass(frozen=True)
class UpdateCost:
    """What an update that is not element by element costs a process, in a step that does nothing
    which comes once in many.

    products: matmuls, and how often each comes. element: bytes of a number in them.
    launches: other kernels, and collectives. passed: bytes that these kernels read and write, but
        for vectors.
    workspace: bytes held beside, in any step. traffic: bytes by kind of collective, see
        `planning.traffic`.
    """

    products: Mapping[Product, int] = field(default_factory=dict)
    element: int = 4
    launches: int = 0
    passed: int = 0
    workspace: int = 0
    traffic: Mapping[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Of matmuls."""
        return sum(times * product.flops for product, times in self.products.items())
