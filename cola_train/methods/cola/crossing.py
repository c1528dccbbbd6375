"""LaX (arXiv 2505.21732): a projection's bottleneck in the block before is added to this one's.

z_l = A_l x_l + g_l A_(l-1) x_(l-1), y_l = B_l s(z_l), with one number g_l for each projection and
block. The paper adds without one (its identity gate, where ranks are the same), or with matrices
between ranks, which are the same here.

Shapes: P projections that share an input; z (..., sum of r_i), side by side.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cola_train.model.init import Fill, constant
from cola_train.model.linear import AutoEncoders
from cola_train.model.mlp import AutoEncoderMLP
from cola_train.model.tap import tap


@dataclass
class Passed:
    """What a module leaves for that of the next block in one forward pass: A x, by its place."""

    z: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Crossing:
    """A module's place among the blocks. begin: of its gates. takes, leaves: none in the first
    block, and in the last."""

    begin: float
    takes: Passed | None
    leaves: Passed | None

    def cross(self, place: str, z: Tensor, gates: Tensor, widths: Sequence[int]) -> Tensor:
        """z with the block's before; gates (P,), of parts of those widths."""
        if self.leaves is not None:
            self.leaves.z[place] = z
        g = torch.cat([gate.expand(width) for gate, width in zip(gates, widths, strict=True)])
        if self.takes is None:
            return z + 0 * g  # for a gradient of all gates, 0
        return torch.addcmul(z, g, self.takes.z.pop(place))


class Crossings:
    """Those of a model that is built block after block."""

    def __init__(self, begin: float, n_layers: int) -> None:
        self.begin, self.n_layers = begin, n_layers
        self.built: dict[tuple[str, ...], int] = defaultdict(int)
        self.left: dict[tuple[str, ...], Passed | None] = {}

    def next(self, projections: tuple[str, ...]) -> Crossing:
        """Of the next block's module of these."""
        block = self.built[projections] % self.n_layers
        self.built[projections] += 1
        takes = self.left[projections] if block else None
        leaves = Passed() if block + 1 < self.n_layers else None
        self.left[projections] = leaves
        return Crossing(self.begin, takes, leaves)


class CrossingAutoEncoders(AutoEncoders):
    """With a parameter `gates` (P,)."""

    def __init__(self, *values: Any) -> None:
        """values: AutoEncoders' and a `Crossing`."""
        *own, self.crossing = values
        super().__init__(*own)
        self.gates = nn.Parameter(torch.empty(len(self.d_outs)))

    def latents(self, x: Tensor) -> Tensor:
        return self.crossing.cross("z", super().latents(x), self.gates, self.widths())

    def init(self, name: str) -> Fill:
        return constant(self.crossing.begin) if name == "gates" else super().init(name)


class CrossingMLP(AutoEncoderMLP):
    """With a parameter `gates` (3,), of gate, up and down."""

    def __init__(self, *values: Any) -> None:
        """values: AutoEncoderMLP's and a `Crossing`."""
        *own, self.crossing = values
        super().__init__(*own)
        self.gates = nn.Parameter(torch.empty(3))

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
        Bs, (outer, inner) = [self.gate_B, self.up_B, self.down_B], self.gates.split([2, 1])
        widths = [B.shape[1] for B in Bs]
        z_BTR = self.ops.down(x_BTD, self.encoders())
        z_BTR = tap("z", self.crossing.cross("z", z_BTR, outer, widths[:2]), self.joined)
        z_BTR = self.ops.gated_down(
            z_BTR, self.gate_B, self.up_B, self.down_A, self.activation, self.gate_silu
        )
        z_BTR = tap("z", self.crossing.cross("inner", z_BTR, inner, widths[2:]), self.inner)
        return self.ops.up(z_BTR, [self.down_B], residual_BTD, self.activation)[0]

    def init(self, name: str) -> Fill:
        return constant(self.crossing.begin) if name == "gates" else super().init(name)
