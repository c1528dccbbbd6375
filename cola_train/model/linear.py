"""The linears of a block: full-rank ones, and CoLA's bottleneck auto-encoders `B silu(A x)`.

Shapes: d_in and d_out features, r the bottleneck width. A module here stands for all projections
that read the same input (q/k/v; gate/up), so that they run as one GEMM. It owns its weights
directly, one parameter for each projection: sharding engines gather the weights of the module
whose forward runs, and checkpoints hold one tensor for each. A `Width` among d_in, d_out and r is
stored with zeros (model/padding.py): inputs and outputs are as wide as that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.model.init import Fill, normal
from cola_train.model.padding import PaddedModule
from cola_train.model.tap import Joined, tap

INIT_STD = 0.02  # of everything but auto-encoders

Projections = Callable[[int, dict[str, int]], nn.Module]  # (d_in, name to d_out) -> a module here


class Ops(Protocol):
    """What the layers compute with: what `cola_kernels.select` returns, or what wraps it."""

    def linear(
        self, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]: ...

    def gated(self, g: Tensor, u: Tensor, gate_silu: bool) -> Tensor: ...

    def down(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor: ...

    def up(
        self, z: Tensor, weights: Sequence[Tensor], residual: Tensor | None, activation: bool
    ) -> tuple[Tensor, ...]: ...

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor: ...


class Linears(PaddedModule):
    """Full-rank linears without bias that share their input: y_i = W_i x."""

    def __init__(self, d_in: int, d_outs: dict[str, int], ops: Ops) -> None:
        """`d_outs` maps each projection's name to its width; its weight is the parameter `name`."""
        super().__init__()
        self.d_in, self.d_outs, self.ops = d_in, dict(d_outs), ops
        for name, d_out in d_outs.items():
            self.add_weight(name, d_out, d_in)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        return self.ops.linear(x, self.weights(), residual)

    def weights(self) -> list[Tensor]:
        """One for each projection, in order."""
        return [getattr(self, name) for name in self.d_outs]

    def init(self, name: str) -> Fill:
        return normal(INIT_STD)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_outs={self.d_outs}"


class AutoEncoders(PaddedModule):
    """CoLA's auto-encoders that share their input: y_i = B_i s(A_i x), s = SiLU or identity.

    Source: arXiv 2502.10940, eq. 3; init from the official code.
    """

    def __init__(
        self,
        d_in: int,
        d_outs: dict[str, int],
        ranks: Mapping[str, int],
        activation: bool,
        ops: Ops,
        init_scale: float = 1.0,
    ) -> None:
        """Parameters `<name>_A` (r, d_in) and `<name>_B` (d_out, r) for each projection.

        `ranks` has the r of each projection, and maybe of others. `activation` puts SiLU on the
        rank-r vectors; without it the layer is plain low rank.
        """
        super().__init__()
        self.d_in, self.d_outs = d_in, dict(d_outs)
        self.ranks = {name: ranks[name] for name in d_outs}
        self.activation, self.ops, self.init_scale = activation, ops, init_scale
        self.joined = Joined(self.ranks, activation)
        for name, d_out in d_outs.items():
            self.add_weight(f"{name}_A", ranks[name], d_in)
            self.add_weight(f"{name}_B", d_out, ranks[name])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        z = tap("z", self.ops.down(x, self.encoders()), self.joined)
        return self.ops.up(z, self.decoders(), residual, self.activation)

    def bottlenecks(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., d_in) -> one s(A_i x), (..., r_i), for each projection, in order: what a cache may
        keep in place of what `expand` makes of it."""
        z = self.ops.down(x, self.encoders())
        s = F.silu(z) if self.activation else z
        return s.split(self.widths(), dim=-1)

    def widths(self) -> list[int]:
        """Of each projection's part of z, as it is stored."""
        return [B.shape[1] for B in self.decoders()]

    def expand(self, name: str, s: Tensor) -> Tensor:
        """A projection's output of its bottleneck s: (..., r) -> (..., d_out)."""
        return self.ops.up(s, [self._decoder(name)], None, False)[0]

    def decoder(self, name: str) -> Tensor:
        """What `expand` makes of the unit vectors, (r, d_out): B transposed."""
        B = self._decoder(name)
        return self.expand(name, torch.eye(B.shape[1], dtype=B.dtype, device=B.device))

    def _decoder(self, name: str) -> Tensor:
        return self.decoders()[list(self.d_outs).index(name)]

    def encoders(self) -> list[Tensor]:
        """A of each projection, in order."""
        return [getattr(self, f"{name}_A") for name in self.d_outs]

    def decoders(self) -> list[Tensor]:
        """B of each projection, in order."""
        return [getattr(self, f"{name}_B") for name in self.d_outs]

    def init(self, name: str) -> Fill:
        projection = name.removesuffix("_A").removesuffix("_B")
        rank, d_out = self.ranks[projection], self.d_outs[projection]
        return normal(self.init_scale * auto_encoder_std(rank, self.d_in, d_out))

    def extra_repr(self) -> str:
        return (
            f"d_in={self.d_in}, d_outs={self.d_outs}, ranks={self.ranks}, "
            f"activation={self.activation}"
        )


def auto_encoder_std(rank: int, d_in: int, d_out: int) -> float:
    """r^(-1/4) (d_in + d_out)^(-1/4), so that B A has entries of std (d_in + d_out)^(-1/2)."""
    return (rank * (d_in + d_out)) ** -0.25
