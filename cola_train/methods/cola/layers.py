"""CoLA: every linear of a block becomes an auto-encoder `B silu(A x)` (arXiv 2502.10940)."""

import cola_kernels
from torch import nn

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.methods.full.layers import FullRank
from cola_train.model.linear import AutoEncoders
from cola_train.model.mlp import AutoEncoderMLP


class Cola(FullRank):
    """Auto-encoders of rank r, on the ops that `kernels` selects.

    `method.activation` says where the non-linearity goes: `low_rank` on the rank-r vectors only,
    `full_rank` on SwiGLU's gate only (plain low-rank layers), `both` on both.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rank = config.rank
        self.low_rank_silu = config.method.activation in ("low_rank", "both")
        self.gate_silu = config.method.activation in ("full_rank", "both")
        self.ops = cola_kernels.select(config.kernels, distributed.device())

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return AutoEncoders(d_in, d_outs, self.rank, self.low_rank_silu, self.ops)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return AutoEncoderMLP(
            d_model, d_ff, self.rank, self.low_rank_silu, self.gate_silu, self.ops
        )
