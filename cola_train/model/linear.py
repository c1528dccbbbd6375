"""The linears of a block: full-rank ones, and CoLA's bottleneck auto-encoders `B silu(A x)`.

Shapes: d_in and d_out features, r the bottleneck width. A module here stands for all projections
that read the same input (q/k/v; gate/up), so that they run as one GEMM. It owns its weights
directly, one parameter for each projection: sharding engines gather the weights of the module
whose forward runs, and checkpoints hold one tensor for each.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from cola_kernels import composed
from torch import Tensor, nn

Projections = Callable[[int, dict[str, int]], nn.Module]  # (d_in, name to d_out) -> a module here


class LowRankOps(Protocol):
    """The low-rank layers' ops: what `cola_kernels.select` returns."""

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


class Linears(nn.Module):
    """Full-rank linears without bias that share their input: y_i = W_i x."""

    def __init__(self, d_in: int, d_outs: dict[str, int]) -> None:
        """`d_outs` maps each projection's name to its width; its weight is the parameter `name`."""
        super().__init__()
        self.d_in, self.d_outs = d_in, dict(d_outs)
        for name, d_out in d_outs.items():
            self.register_parameter(name, nn.Parameter(torch.empty(d_out, d_in)))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        weights = [getattr(self, name) for name in self.d_outs]
        if len(weights) == 1:
            y = F.linear(x, weights[0])
            return (y if residual is None else residual + y,)
        return composed.down(x, weights).split(list(self.d_outs.values()), dim=-1)

    def init_std(self, parameter: str) -> float:
        """Standard deviation of a parameter's normal init."""
        return 0.02

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_outs={self.d_outs}"


class AutoEncoders(nn.Module):
    """CoLA's auto-encoders that share their input: y_i = B_i s(A_i x), s = SiLU or identity.

    Source: arXiv 2502.10940, eq. 3; init from the official code.
    """

    def __init__(
        self, d_in: int, d_outs: dict[str, int], rank: int, activation: bool, ops: LowRankOps
    ) -> None:
        """Parameters `<name>_A` (rank, d_in) and `<name>_B` (d_out, rank) for each projection.

        `activation` puts SiLU on the rank-r vector; without it the layer is plain low rank.
        """
        super().__init__()
        self.d_in, self.d_outs, self.rank = d_in, dict(d_outs), rank
        self.activation, self.ops = activation, ops
        for name, d_out in d_outs.items():
            self.register_parameter(f"{name}_A", nn.Parameter(torch.empty(rank, d_in)))
            self.register_parameter(f"{name}_B", nn.Parameter(torch.empty(d_out, rank)))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        z = self.ops.down(x, [getattr(self, f"{name}_A") for name in self.d_outs])
        weights = [getattr(self, f"{name}_B") for name in self.d_outs]
        return self.ops.up(z, weights, residual, self.activation)

    def init_std(self, parameter: str) -> float:
        """See `auto_encoder_std`."""
        d_out = self.d_outs[parameter.removesuffix("_A").removesuffix("_B")]
        return auto_encoder_std(self.rank, self.d_in, d_out)

    def extra_repr(self) -> str:
        return (
            f"d_in={self.d_in}, d_outs={self.d_outs}, rank={self.rank}, "
            f"activation={self.activation}"
        )


def auto_encoder_std(rank: int, d_in: int, d_out: int) -> float:
    """r^(-1/4) (d_in + d_out)^(-1/4), so that B A has entries of std (d_in + d_out)^(-1/2)."""
    return (rank * (d_in + d_out)) ** -0.25
