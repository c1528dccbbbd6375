"""The options of such methods, and what their blocks cost."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cola_train.config.groups import ModelConfig
from cola_train.methods import launches
from cola_train.methods.bottleneck.launches import AutoEncoderBlock, Silus
from cola_train.methods.costs import (
    NORMS_FP32,
    BlockCost,
    CacheCost,
    attention_backward_flops,
    attention_flops,
    attention_fp32,
    norm_weights,
)
from cola_train.methods.rank import RankOptions


@dataclass(frozen=True)
class BottleneckOptions(RankOptions):
    """Every linear of a block as B s(A x) of rank r, s the SiLU or the identity."""

    implementation = "cola_train.methods.bottleneck.layers:Bottlenecks"
    policies = ("none", "light", "cola_m", "full")
    fused_kernels = True
    model_type = "cola"
    modeling = "cola_train.methods.bottleneck.modeling_cola"

    @abstractmethod
    def silus(self, model: ModelConfig) -> Silus:
        """Where a model has them."""

    def exported(self, model: ModelConfig) -> dict[str, Any]:
        """Its rank, and where SiLU stands, in the words of `method.activation`."""
        on_rank_r, on_gate = self.silus(model)
        both = "both" if on_gate else "low_rank"
        return {
            "rank": int(self.bottleneck(model)),
            "activation": both if on_rank_r else "full_rank",
        }

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f, r = model.d_model, model.d_ff, self.ranks_of(model)
        # with their zeros, as they are kept
        F, R = model.inner.stored, {name: rank.stored for name, rank in r.items()}
        both, seven = R["gate"] + R["up"], sum(R.values())
        weights = self.factors(model)
        linears = sum(weight.elements for weight in weights)
        attention = attention_flops(model, length)
        forward = 2 * linears + attention
        kept = 2 * d + seven  # the residual stream before each half, the seven rank-r vectors
        if policy == "full":
            # on torch's ops the recomputation ends with what the last product needs
            again, saved, saved_fp32 = forward if fused else forward - 2 * d * r["down"], d, 0
            workspace = 5 * F + 8 * d + (seven + both if fused else 2 * (seven - R["down"]))
        elif policy == "none":
            again = 0
            saved = kept + 6 * d + 3 * F  # both norms' outputs, q, k, v, attention's output
            if not fused and self.silus(model).rank_r:
                saved += seven  # the SiLU of the rank-r vectors; Triton's ops make it anew
            saved_fp32 = NORMS_FP32 + attention_fp32(model)
            workspace = 2 * F + d + (both if fused else 0)
        else:
            again = 2 * d * (r["q"] + r["k"] + r["v"]) + 2 * f * (r["gate"] + r["up"])
            saved, saved_fp32 = kept, 0
            workspace = (3 if fused else 5) * F + 2 * d + (2 * both if fused else R["down"])
            if policy == "cola_m":
                again += attention
            else:  # light keeps attention's output too
                saved, saved_fp32 = saved + d, attention_fp32(model)
        return BlockCost(
            weights=weights + norm_weights(model),
            forward_flops=forward,
            backward_flops=4 * linears + attention_backward_flops(model, length),
            recomputed_flops=again,
            saved=saved,
            saved_fp32=saved_fp32,
            workspace=workspace,
        )

    def caches(self, model: ModelConfig) -> dict[str, CacheCost]:
        """Values are B_v s_v of rank-r vectors s_v = s(z_v): `absorbed` keeps keys and s_v, to
        which all heads attend, and multiplies by B_v afterwards. `latent` keeps s_k too in place
        of keys, which positions turn, so that each new token rebuilds them all."""
        d, ranks = model.d_model, self.ranks_of(model)
        k, v = int(ranks["k"]), int(ranks["v"])
        scores, values = 2 * d, 2 * model.n_heads * v
        return super().caches(model) | {
            "absorbed": CacheCost(
                "keys, and the rank-r vectors of values", elements=d + v, flops=scores + values
            ),
            "latent": CacheCost(
                "the rank-r vectors of keys and values; keys are rebuilt for each token",
                elements=k + v,
                flops=2 * k * d + scores + values,
                workspace=d,
            ),
        }

    @property
    def block_kind(self) -> type[AutoEncoderBlock]:
        """What lists a block's kernels."""
        return AutoEncoderBlock

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        block = self.block_kind(
            model,
            work,
            {name: rank.stored for name, rank in self.ranks_of(model).items()},
            self.silus(model),
            keeps_rank_r=work.policy in ("cola_m", "light"),
            keeps_attention=work.policy == "light",
        )
        yield from block.launches()
