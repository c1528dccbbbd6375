"""The linears of a block: full-rank ones, and CoLA's bottleneck auto-encoders `B silu(A x)`.

Shapes: n rows (batch x sequence), d_in and d_out features, r the bottleneck width. A module here
stands for all projections that read the same input (q/k/v; gate/up), so that they run as one
GEMM. It owns its weights directly, one parameter for each projection: sharding engines gather the
weights of the module whose forward runs, and checkpoints hold one tensor for each.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class _SharedInputLinear(torch.autograd.Function):
    """`x @ cat(weights).T`, keeping the weights rather than their concatenation.

    A concatenation kept for the backward pass would hold every layer's gathered weights alive,
    and undo what sharding saves.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return F.linear(x, torch.cat(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
        dy = dy.flatten(0, -2)
        dx = (dy @ torch.cat(weights)).view_as(x)
        dw = dy.T @ x.flatten(0, -2)
        return dx, *dw.split([w.shape[0] for w in weights])


def shared_input_linear(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Several linears of one input in one GEMM.

    Args:
        x: (..., d_in).
        weights: each (d_out_i, d_in), of x's dtype.

    Returns:
        (..., sum of d_out_i), the outputs side by side; `split` gives them as views.
    """
    if len(weights) == 1:
        return F.linear(x, weights[0])
    return _SharedInputLinear.apply(x, *weights)


class Linears(nn.Module):
    """Full-rank linears without bias that share their input: y_i = W_i x."""

    def __init__(self, d_in: int, d_outs: dict[str, int]) -> None:
        """`d_outs` maps each projection's name to its width; its weight is the parameter `name`."""
        super().__init__()
        self.d_in, self.d_outs = d_in, dict(d_outs)
        for name, d_out in d_outs.items():
            self.register_parameter(name, nn.Parameter(torch.empty(d_out, d_in)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order."""
        y = shared_input_linear(x, [getattr(self, name) for name in self.d_outs])
        return y.split(list(self.d_outs.values()), dim=-1)

    def init_std(self, parameter: str) -> float:
        """Standard deviation of a parameter's normal init."""
        return 0.02

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_outs={self.d_outs}"


class AutoEncoders(nn.Module):
    """CoLA's auto-encoders that share their input: y_i = B_i s(A_i x), s = SiLU or identity.

    Source: arXiv 2502.10940, eq. 3; init from the official code.
    """

    def __init__(self, d_in: int, d_outs: dict[str, int], rank: int, activation: bool) -> None:
        """Parameters `<name>_A` (rank, d_in) and `<name>_B` (d_out, rank) for each projection.

        `activation` puts SiLU on the rank-r vector; without it the layer is plain low rank.
        """
        super().__init__()
        self.d_in, self.d_outs, self.rank, self.activation = d_in, dict(d_outs), rank, activation
        for name, d_out in d_outs.items():
            self.register_parameter(f"{name}_A", nn.Parameter(torch.empty(rank, d_in)))
            self.register_parameter(f"{name}_B", nn.Parameter(torch.empty(d_out, rank)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order."""
        z = shared_input_linear(x, [getattr(self, f"{name}_A") for name in self.d_outs])
        h = F.silu(z) if self.activation else z
        return tuple(
            F.linear(h_i, getattr(self, f"{name}_B"))
            for name, h_i in zip(self.d_outs, h.split(self.rank, dim=-1), strict=True)
        )

    def init_std(self, parameter: str) -> float:
        """r^(-1/4) (d_in + d_out)^(-1/4), so that B A has entries of std (d_in + d_out)^(-1/2)."""
        d_out = self.d_outs[parameter.removesuffix("_A").removesuffix("_B")]
        return (self.rank * (self.d_in + d_out)) ** -0.25

    def extra_repr(self) -> str:
        return (
            f"d_in={self.d_in}, d_outs={self.d_outs}, rank={self.rank}, "
            f"activation={self.activation}"
        )
