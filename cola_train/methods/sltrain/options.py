"""SLTrain's options, and what its blocks cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from cola_train.config.fields import PositiveFloat, PositiveFraction
from cola_train.config.groups import ModelConfig
from cola_train.methods import launches
from cola_train.methods.costs import BlockCost, PassFlops, Weight, all_or_input, unnormed
from cola_train.methods.full.options import FullOptions
from cola_train.methods.options import MethodOptions, Run
from cola_train.methods.rank import RankOptions
from cola_train.methods.recipe import Recipe, by_size
from cola_train.methods.sltrain.launches import block_launches
from cola_train.parallel.topology import Topology

INDEX_BYTES = 4  # int32


@dataclass(frozen=True)
class SltrainOptions(RankOptions):
    """Every linear of a block as low rank plus sparse, (alpha / r) B A + S (arXiv 2406.02214)."""

    # the paper's sparsity, delta: the share of a weight's entries that S has; null: published for
    # model.name (0.03, 7b 0.05)
    sparsity: PositiveFraction | None = None
    alpha: PositiveFloat | None = None  # of alpha / r; null: published for model.name (32 ... 8)

    implementation = "cola_train.methods.sltrain.layers:Sltrain"

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """Of the official code's scripts."""
        clip = by_size((None, None, None, None, 1.0), size)
        return Recipe(lr=3e-3, warmup_steps=steps // 10, weight_decay=0.0, clip=clip)

    @property
    def folded(self) -> MethodOptions:
        return FullOptions("full")

    def alpha_of(self, model: ModelConfig) -> float:
        return self.alpha or by_size((32.0, 16.0, 16.0, 8.0, 8.0), model.name)

    def sparsity_of(self, model: ModelConfig) -> float:
        return self.sparsity or by_size((0.03, 0.03, 0.03, 0.03, 0.05), model.name)

    def support_size(self, model: ModelConfig, entries: int) -> int:
        """Of S in a weight of so many entries: the floor of the share as it is written, not of a
        rounded product (0.29 of 100 is 29)."""
        return int(Fraction(str(self.sparsity_of(model))) * entries)

    def support_sizes(self, model: ModelConfig) -> list[int]:
        """Of each linear of a block."""
        return [self.support_size(model, d_out * d_in) for d_in, d_out in model.linear_shapes]

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "rank": int(self.bottleneck(model)),
            "sparsity": self.sparsity_of(model),
            "alpha": self.alpha_of(model),
        }

    def label(self, model: ModelConfig) -> str:
        return f"rank {self.bottleneck(model)} + {self.sparsity_of(model):.3g} sparse"

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        model = run.model
        yield from super().problems(run, topology)
        if run.train.precision == "fp8":
            yield (
                "train.precision: fp8 multiplies by weights, which method=sltrain builds within an "
                "op that has none in fp8; use train.precision=bf16"
            )
        if self.support_size(model, model.d_model * min(model.d_model, model.d_ff)) == 0:
            yield (
                f"method.sparsity: {self.sparsity_of(model)} of {model.d_model} x {model.d_model} "
                "is not one entry; raise it"
            )
        if model.d_model * max(model.d_model, model.inner.stored) >= 2**31:
            yield (
                f"model.d_ff: method=sltrain numbers the entries of a weight in 32 bits, which "
                f"{model.d_model} x {model.inner.stored} exceed; use a smaller model"
            )

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, F, r = model.d_model, model.inner.stored, self.bottleneck(model)
        values = [Weight((size,)) for size in self.support_sizes(model)]
        dense = sum(d_in * d_out for d_in, d_out in model.linear_shapes)
        cost = all_or_input(
            model, length, policy, weights=(*self.factors(model), *values),
            forward=2 * dense, backward=4 * dense,
            # an op says what it keeps once it has run, so the last one is run again too
            not_again=0,
            # x, norm(x), v, rotated q and k, attention's output twice (x + attention), its norm;
            # gate and up, and their gated product
            saved=8 * d + 3 * F + unnormed(model),
            workspace=(2 * F + d, 5 * F + 9 * d),
        )  # fmt: skip
        build = 2 * r * dense  # W, of B A
        return replace(
            cost,
            pass_flops=PassFlops(build, 2 * build, build if policy == "none" else 2 * build),
            pass_workspace=d * F,  # W or its gradient, be it at another moment
            buffer_bytes=INDEX_BYTES * sum(weight.elements for weight in values),
        )

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        rank, sizes = self.bottleneck(model).stored, self.support_sizes(model)
        yield from block_launches(model, work, rank, sizes)
