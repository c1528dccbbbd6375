"""CoLA's options, and what its blocks cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from cola_train.config.groups import ModelConfig
from cola_train.methods import launches
from cola_train.methods.cola.launches import AutoEncoderBlock
from cola_train.methods.costs import (
    NORMS_FP32,
    BlockCost,
    Weight,
    attention_backward_flops,
    attention_flops,
    attention_fp32,
    norm_weights,
)
from cola_train.methods.options import Run
from cola_train.methods.rank import RankOptions
from cola_train.parallel.topology import Topology

Placement = Literal["low_rank", "both", "full_rank"]


@dataclass(frozen=True)
class ColaOptions(RankOptions):
    """Every linear of a block as an auto-encoder of rank r, `B silu(A x)` (arXiv 2502.10940)."""

    # low_rank: SiLU on the rank-r vectors only; full_rank: on SwiGLU's gate only (plain low-rank
    # layers); both. null: model.activation
    activation: Placement | None = None

    implementation = "cola_train.methods.cola.layers:Cola"
    policies = ("none", "light", "cola_m", "full")
    fused_kernels = True

    def placement(self, model: ModelConfig) -> Placement:
        return self.activation or cast(Placement, model.activation)

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        return {"rank": int(self.bottleneck(model)), "activation": self.placement(model)}

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        if self.placement(run.model) not in get_args(Placement):
            choices = ", ".join(get_args(Placement))
            yield f"model.activation: must be one of {choices}, got {run.model.activation!r}"
        yield from super().problems(run, topology)

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f, r = model.d_model, model.d_ff, self.bottleneck(model)
        F, R = model.inner.stored, r.stored  # with their zeros, as they are kept
        weights = tuple(
            Weight(shape)
            for d_in, d_out in model.linear_shapes
            for shape in ((r, d_in), (d_out, r))
        )
        linears = sum(weight.elements for weight in weights)
        attention = attention_flops(model, length)
        forward = 2 * linears + attention
        kept = 2 * d + 7 * R  # the residual stream before each half, the seven rank-r vectors
        if policy == "full":
            # on torch's ops the recomputation ends with what the last product needs
            again, saved, saved_fp32 = forward if fused else forward - 2 * d * r, d, 0
            workspace = 5 * F + 8 * d + (9 if fused else 12) * R
        elif policy == "none":
            again = 0
            saved = kept + 6 * d + 3 * F  # both norms' outputs, q, k, v, attention's output
            if not fused and self.placement(model) != "full_rank":
                saved += 7 * R  # the SiLU of the rank-r vectors; Triton's ops make it anew
            saved_fp32 = NORMS_FP32 + attention_fp32(model)
            workspace = 2 * F + d + (2 * R if fused else 0)
        else:
            again = 6 * d * r + 4 * f * r  # q, k, v; gate and up
            saved, saved_fp32 = kept, 0
            workspace = (3 if fused else 5) * F + 2 * d + (4 if fused else 1) * R
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

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        placement = self.placement(model)
        block = AutoEncoderBlock(
            model,
            work,
            self.bottleneck(model).stored,
            low_rank_silu=placement in ("low_rank", "both"),
            gate_silu=placement in ("full_rank", "both"),
            keeps_rank_r=work.policy in ("cola_m", "light"),
            keeps_attention=work.policy == "light",
        )
        yield from block.launches()
