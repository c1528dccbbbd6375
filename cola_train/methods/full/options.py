"""Full rank: plain linears, no options."""

from dataclasses import dataclass

from cola_train.config.groups import ModelConfig
from cola_train.methods.costs import (
    NORMS_FP32,
    BlockCost,
    Weight,
    attention_backward_flops,
    attention_flops,
    attention_fp32,
    norm_weights,
)
from cola_train.methods.options import MethodOptions


@dataclass(frozen=True)
class FullOptions(MethodOptions):
    """The full-rank baseline."""

    implementation = "cola_train.methods.full.layers:FullRank"

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f, F = model.d_model, model.d_ff, model.inner.stored
        linears = sum(d_in * d_out for d_in, d_out in model.linear_shapes)
        weights = tuple(Weight((d_out, d_in)) for d_in, d_out in model.linear_shapes)
        attention = attention_flops(model, length)
        keeps_all = policy == "none"
        return BlockCost(
            weights=weights + norm_weights(model),
            forward_flops=2 * linears + attention,
            backward_flops=4 * linears + attention_backward_flops(model, length),
            # the recomputation ends with what the last product needs: that is not run
            recomputed_flops=0 if keeps_all else 2 * linears + attention - 2 * d * f,
            # x, norm(x), the joint q/k/v (v is a view of it), rotated q and k, attention's output
            # twice (x + attention), its norm; gate and up, and their gated product
            saved=10 * d + 3 * F if keeps_all else d,
            saved_fp32=NORMS_FP32 + attention_fp32(model) if keeps_all else 0,
            workspace=2 * F + d if keeps_all else 5 * F + 10 * d,
        )
