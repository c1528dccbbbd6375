"""The MLP of a block: SwiGLU over any projections, and CoLA's, which owns all of its weights.

Shapes: B sequences, T positions, D = d_model, F = d_ff, r the bottleneck width of a projection; F
and r as they are stored.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from cola_train.model.init import Fill, normal
from cola_train.model.linear import Ops, Projections, auto_encoder_std
from cola_train.model.padding import PaddedModule
from cola_train.model.tap import Joined, tap


class MLP(nn.Module):
    """residual + down(f(gate(x)) * up(x)), f = SiLU (SwiGLU) or identity."""

    def __init__(
        self, d_model: int, d_ff: int, silu: bool, projections: Projections, ops: Ops
    ) -> None:
        """`projections(d_in, d_outs)` builds the linears; a d_ff that is a `Width` is padded."""
        super().__init__()
        self.silu, self.ops = silu, ops
        self.gate_up = projections(d_model, {"gate": d_ff, "up": d_ff})
        self.down = projections(d_ff, {"down": d_model})

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        return self.down(self.ops.gated(gate_BTF, up_BTF, self.silu), residual_BTD)[0]


class AutoEncoderMLP(PaddedModule):
    """The same of CoLA's auto-encoders, from bottleneck to bottleneck in one op.

    One module for all six weights: an op over them must find them gathered together.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        ranks: Mapping[str, int],
        activation: bool,
        gate_silu: bool,
        ops: Ops,
        init_scale: float = 1.0,
    ) -> None:
        """`ranks` has those of gate, up and down. `activation` puts SiLU on the rank-r vectors,
        `gate_silu` on the gate."""
        super().__init__()
        self.d_model, self.d_ff = d_model, d_ff
        self.ranks = {name: ranks[name] for name in ("gate", "up", "down")}
        self.activation, self.gate_silu, self.ops = activation, gate_silu, ops
        self.init_scale = init_scale
        self.joined = Joined({name: ranks[name] for name in ("gate", "up")}, activation)
        self.inner = Joined({"down": ranks["down"]}, activation)
        self.gate_A = self.add_weight("gate_A", ranks["gate"], d_model)
        self.gate_B = self.add_weight("gate_B", d_ff, ranks["gate"])
        self.up_A = self.add_weight("up_A", ranks["up"], d_model)
        self.up_B = self.add_weight("up_B", d_ff, ranks["up"])
        self.down_A = self.add_weight("down_A", ranks["down"], d_ff)
        self.down_B = self.add_weight("down_B", d_model, ranks["down"])

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
        z_BTR = tap("z", self.ops.down(x_BTD, self.encoders()), self.joined)
        z_BTR = self.ops.gated_down(
            z_BTR, self.gate_B, self.up_B, self.down_A, self.activation, self.gate_silu
        )
        z_BTR = tap("z", z_BTR, self.inner)
        return self.ops.up(z_BTR, [self.down_B], residual_BTD, self.activation)[0]

    def encoders(self) -> list[Tensor]:
        """A of gate and up, which share their input."""
        return [self.gate_A, self.up_A]

    def init(self, name: str) -> Fill:
        # all three projections join the same two widths
        rank = self.ranks[name.removesuffix("_A").removesuffix("_B")]
        return normal(self.init_scale * auto_encoder_std(rank, self.d_model, self.d_ff))

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, d_ff={self.d_ff}, ranks={self.ranks}, "
            f"activation={self.activation}, gate_silu={self.gate_silu}"
        )
