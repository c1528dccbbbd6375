"""CoLA's auto-encoders, with another function than SiLU in them if `method.sigma` says so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.methods.bottleneck.layers import Bottlenecks
from cola_train.methods.cola.crossing import CrossingAutoEncoders, CrossingMLP, Crossings
from cola_train.methods.cola.options import ColaOptions
from cola_train.model.linear import Activation, AutoEncoders, Begin, Ops
from cola_train.model.mlp import AutoEncoderMLP


class Cola(Bottlenecks):
    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, ColaOptions)
        if config.method.own_sigma:
            self.ops = SigmaOps(self.ops, SIGMAS[config.method.sigma])
        self.begin = Begin(config.method.init_scale, config.method.dlr_init)
        self.crossings = None
        if config.method.lax is not None:
            if self.kernels == "triton":
                raise UserError("method.lax: has no Triton kernels; use kernels=torch")
            self.crossings = Crossings(config.method.lax, config.model.n_layers)

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        values = (d_in, d_outs, self.ranks, self.silus.rank_r, self.ops, self.begin)
        if self.crossings is None:
            return AutoEncoders(*values)
        return CrossingAutoEncoders(*values, self.crossings.next(tuple(d_outs)))

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        values = (d_model, d_ff, self.ranks, *self.silus, self.ops, self.begin)
        if self.crossings is None:
            return AutoEncoderMLP(*values)
        return CrossingMLP(*values, self.crossings.next(("gate", "up", "down")))


def relu2(z: Tensor) -> Tensor:
    """ReLU squared (arXiv 2109.08668)."""
    return F.relu(z).square()


SIGMAS: dict[str, Activation] = {"silu": F.silu, "relu2": relu2, "gelu": F.gelu}


@dataclass(frozen=True)
class SigmaOps:
    """`ops` with `sigma`, an elementwise function that is 0 at 0 (zeros are stored beyond a rank's
    own width), where they would have SiLU on rank-r vectors: it is computed before them."""

    ops: Ops
    sigma: Activation

    def over(self, ops: Ops) -> "SigmaOps":
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
        return self.ops.up(self.sigma(z) if activation else z, weights, residual, False)

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor:
        s = self.sigma(z) if activation else z
        return self.ops.gated_down(s, gate, up, down, False, gate_silu)
