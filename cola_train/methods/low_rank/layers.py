"""Plain low rank; and DLR's expansion as another set of ops under the same layers.

DLR (arXiv 2606.28932): y = B z + alpha / sqrt(K) Expand_K(z), z = A x (r), y (m), K = ceil(m / r).
Expand_K puts K copies of z side by side and cuts them to m.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_train.config.schema import Config
from cola_train.methods.bottleneck.layers import Bottlenecks
from cola_train.methods.low_rank.options import LowRankOptions
from cola_train.model.linear import Ops


class LowRank(Bottlenecks):
    """Linears B A x, with DLR's expansion if `method.dlr` is given."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, LowRankOptions)
        self.alpha = config.method.dlr
        if self.alpha is not None:
            (rank,) = set(self.ranks.values())
            self.ops = ExpandingOps(self.ops, self.alpha, int(rank), config.model.d_ff)

    def fold(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """B + alpha / sqrt(K) E in place of each B (m, r), E z = Expand_K(z)."""
        folded = dict(weights)
        if self.alpha is not None:
            for name in (name for name in weights if name.endswith("_B")):
                width, rank = weights[name].shape
                E = expansion(torch.eye(rank).to(weights[name]), width, self.alpha).t()
                folded[name] = weights[name] + E
        return folded


def expansion(z: Tensor, width: int, alpha: float) -> Tensor:
    """alpha / sqrt(K) Expand_K(z), which is about as long as alpha z: (..., r) -> (..., width)."""
    copies, rest = divmod(width, z.shape[-1])
    scaled = z * (alpha / math.sqrt(copies + (rest > 0)))
    return torch.cat([*[scaled] * copies, scaled[..., :rest]], dim=-1)


@dataclass(frozen=True)
class ExpandingOps:
    """`ops` whose up-projections expand. A sum keeps nothing for the backward pass, so that nothing
    more is kept; but what lies between gate, up and down is not one op: its outputs are needed.

    rank, d_ff: the model's own. What is stored beyond them gets zeros: copies are of the own ones.
    """

    ops: Ops
    alpha: float
    rank: int
    d_ff: int

    def over(self, ops: Ops) -> "ExpandingOps":
        return replace(self, ops=ops)

    def linear(
        self, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        return self.ops.linear(x, weights, residual)

    def gated(self, g: Tensor, u: Tensor, gate_silu: bool) -> Tensor:
        return self.ops.gated(g, u, gate_silu)

    def down(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return self.ops.down(x, weights)

    def up(
        self, z: Tensor, weights: Sequence[Tensor], residual: Tensor | None, activation: bool
    ) -> tuple[Tensor, ...]:
        """To d_model, which has no zeros."""
        assert not activation  # Expand_K is of z itself
        if residual is not None:  # before the op, whose output may be kept
            (B,) = weights
            return self.ops.up(z, weights, self.sum(residual, z, len(B)), activation)
        return self.expanding(z, weights, [len(B) for B in weights])

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor:
        assert not activation
        g, u = self.expanding(z, [gate, up], [self.d_ff] * 2)
        return self.ops.down(self.ops.gated(g, u, gate_silu), [down])

    def expanding(
        self, z: Tensor, weights: Sequence[Tensor], widths: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """y_i = B_i z_i + the expansion of z_i to widths[i]."""
        ys = self.ops.up(z, weights, None, False)
        zs = z.split([B.shape[1] for B in weights], dim=-1)
        return tuple(self.sum(*of) for of in zip(ys, zs, widths, strict=True))

    def sum(self, y: Tensor, z: Tensor, width: int) -> Tensor:
        """y + the expansion of z to `width`; y (..., width or more), z (..., rank or more)."""
        added = expansion(z[..., : self.rank], width, self.alpha)
        return y + (added if y.shape[-1] == width else F.pad(added, (0, y.shape[-1] - width)))
