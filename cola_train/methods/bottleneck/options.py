"""The options of such methods, and what their blocks cost."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cola_train.config.fields import PositiveFloat, PositiveInt
from cola_train.config.groups import PROJECTIONS, ModelConfig, Projection
from cola_train.config.widths import RankWidth
from cola_train.methods import launches
from cola_train.methods.bottleneck.launches import AutoEncoderBlock, Silus
from cola_train.methods.costs import (
    BlockCost,
    CacheCost,
    attention_backward_flops,
    attention_flops,
    attention_fp32,
    norm_weights,
    norms_fp32,
    unnormed,
)
from cola_train.methods.options import Run
from cola_train.methods.rank import RankOptions
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class BottleneckOptions(RankOptions):
    """Every linear of a block as B s(A x) of rank r, s the SiLU or the identity."""

    # ranks of single projections, as {q:64,down:128}; the others have rank's or rank_ratio's
    ranks: dict[Projection, PositiveInt] = field(default_factory=dict, hash=False)
    init_scale: PositiveFloat = 1.0  # times the std with which A and B begin

    implementation = "cola_train.methods.bottleneck.layers:Bottlenecks"
    policies = ("none", "light", "cola_m", "full")
    fused_kernels = True
    model_type = "cola"
    modeling = "cola_train.methods.bottleneck.modeling_cola"

    @abstractmethod
    def silus(self, model: ModelConfig) -> Silus:
        """Where a model has them."""

    def rank_of(self, model: ModelConfig, projection: str) -> RankWidth:
        if projection in self.ranks:
            return RankWidth(self.ranks[projection])
        return super().rank_of(model, projection)

    def one_rank(self, model: ModelConfig) -> int | None:
        """That of all projections; None: they have several."""
        first, *others = {int(rank) for rank in self.ranks_of(model).values()}
        return None if others else first

    def plain_ranks(self, model: ModelConfig) -> dict[str, int]:
        """Of each projection, as JSON has them."""
        return {name: int(rank) for name, rank in self.ranks_of(model).items()}

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        """One rank, or that of each projection; how they began is none of it."""
        found = super().identity(model)
        others = {k: v for k, v in found.items() if k not in ("ranks", "init_scale")}
        return {**others, "rank": self.one_rank(model) or self.plain_ranks(model)}

    def label(self, model: ModelConfig) -> str:
        if (rank := self.one_rank(model)) is not None:
            return f"rank {rank}"
        of = [f"{name} {rank}" for name, rank in self.plain_ranks(model).items()]
        return f"ranks {', '.join(of)}"

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        d_model = run.model.d_model
        for name, rank in self.ranks.items():
            if rank > d_model:
                yield (
                    f"method.ranks: {name} has a rank of {rank}; it must be from 1 to "
                    f"model.d_model ({d_model})"
                )
        if self.rank is not None and len(self.ranks) == len(PROJECTIONS):
            yield (
                f"method.rank: {self.rank} has no effect, for method.ranks names every projection; "
                "leave one of them out"
            )

    def exported(self, model: ModelConfig) -> dict[str, Any]:
        """Its rank, or that of each projection, where SiLU stands, in the words of
        `method.activation`, and whether queries and keys are normalised."""
        on_rank_r, on_gate = self.silus(model)
        both, rank = "both" if on_gate else "low_rank", self.one_rank(model)
        return {
            **({"ranks": self.plain_ranks(model)} if rank is None else {"rank": rank}),
            "activation": both if on_rank_r else "full_rank",
            **({"qk_norm": True} if model.qk_norm else {}),
        }

    def fuses_middle(self, model: ModelConfig) -> bool:
        """Whether Triton's kernel takes the MLP's middle, from gate's and up's bottlenecks, which
        must be equally wide, to down's."""
        return self.rank_of(model, "gate").stored == self.rank_of(model, "up").stored

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
        middle = fused and self.fuses_middle(model)
        if policy == "full":
            # on torch's ops the recomputation ends with what the last product needs
            again, saved, saved_fp32 = forward if fused else forward - 2 * d * r["down"], d, 0
            of_torch = 5 * F + 8 * d + 2 * (seven - R["down"])
            of_triton = 5 * F + 8 * d + seven + both
        elif policy == "none":
            again = 0
            # both norms' outputs, q, k, v, attention's output
            saved = kept + 6 * d + 3 * F + unnormed(model)
            if self.silus(model).rank_r:  # torch's ops keep the SiLU too, Triton's make it anew
                saved += seven if not fused else 0 if middle else both
            saved_fp32 = norms_fp32(model) + attention_fp32(model)
            of_torch = 2 * F + d
            of_triton = 2 * F + d + both
        else:
            # q, k, v; gate and up
            again = 2 * d * (r["q"] + r["k"] + r["v"]) + 2 * f * (r["gate"] + r["up"])
            saved, saved_fp32 = kept, 0
            of_torch = 5 * F + 2 * d + R["down"]
            of_triton = 3 * F + 2 * d + 2 * both
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
            # on Triton's kernels, but for the middle, the larger of them
            workspace=max(of_triton if fused else 0, 0 if middle else of_torch),
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
