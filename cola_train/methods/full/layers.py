"""Full-rank pre-training: the baseline."""

from torch import nn

from cola_train.methods.base import Method
from cola_train.model.linear import Linears
from cola_train.model.mlp import MLP


class FullRank(Method):
    """Plain linears and SwiGLU."""

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return Linears(d_in, d_outs, self.ops)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return MLP(d_model, d_ff, silu=True, projections=self.projections, ops=self.ops)
