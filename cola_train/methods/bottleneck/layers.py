"""Auto-encoders B s(A x) in place of every linear of a block."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from cola_kernels.names import RANK_R_OPS, RESIDUAL_OPS
from torch import nn

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.hardware import compute_dtype
from cola_train.methods.base import Method
from cola_train.methods.bottleneck.options import BottleneckOptions
from cola_train.model.context import ATTENTION_OPS
from cola_train.model.linear import AutoEncoders
from cola_train.model.mlp import AutoEncoderMLP
from cola_train.progress import say


class Bottlenecks(Method):
    """Auto-encoders, on the ops that `kernels` selects."""

    # CoLA-M (arXiv 2502.10940, section 4) keeps the rank-r vectors; light attention's output too,
    # and so does not run attention twice. The residual stream is kept anyway, as the next input.
    kept_ops: ClassVar[Mapping[str, frozenset[str]]] = {
        "cola_m": RANK_R_OPS | RESIDUAL_OPS,
        "light": RANK_R_OPS | RESIDUAL_OPS | ATTENTION_OPS,
    }

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, BottleneckOptions)
        self.ranks = config.method.ranks_of(config.model)
        self.silus = config.method.silus(config.model)
        self.init_scale = config.method.init_scale

    def warm_up(self, config: Config, device: torch.device) -> None:
        if self.kernels == "torch":
            return
        from cola_kernels.recording import warm_up

        assert isinstance(config.method, BottleneckOptions)
        if not config.method.fuses_middle(config.model) and distributed.rank() == 0:
            say("kernels: the MLP from gate's and up's bottlenecks to down's is on torch's kernels")
        d, dtype = config.model.d_model, compute_dtype(config.train.precision, device)
        with torch.device("meta"):
            mlp, out = self.mlp(d, config.model.inner), self.projections(d, {"o": d})

        def half_blocks(rows: int) -> None:
            x = torch.empty(rows, d, dtype=dtype, device="meta", requires_grad=True)
            y = mlp.to(dtype)(out.to(dtype)(x, x)[0], x)
            y.backward(torch.empty_like(y))

        micro_batch = config.micro_batch_size(distributed.world_size())
        for sequences in {micro_batch, config.evaluation.batch_size}:
            rows = sequences * config.train.sequence_length
            warm_up(partial(half_blocks, rows), device)

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return AutoEncoders(d_in, d_outs, self.ranks, self.silus.rank_r, self.ops, self.init_scale)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return AutoEncoderMLP(d_model, d_ff, self.ranks, *self.silus, self.ops, self.init_scale)
