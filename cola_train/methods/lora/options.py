"""LoRA's options, and what its blocks cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cola_train.config.fields import PathText, PositiveFloat
from cola_train.config.groups import ModelConfig
from cola_train.methods import launches
from cola_train.methods.costs import BlockCost, Weight, all_or_input, unnormed
from cola_train.methods.full.options import FullOptions
from cola_train.methods.lora.launches import LoraBlock
from cola_train.methods.options import MethodOptions
from cola_train.methods.rank import RankOptions
from cola_train.methods.recipe import Recipe


@dataclass(frozen=True)
class LoraOptions(RankOptions):
    """Every linear of a block as W x + alpha / r B A x, W frozen (arXiv 2106.09685)."""

    alpha: PositiveFloat = 32.0  # the factors' product is multiplied by alpha / r
    # a run or checkpoint of method=full, with whose weights a new run begins; null: random ones
    warm_start: PathText | None = None

    implementation = "cola_train.methods.lora.layers:Lora"
    warm_starts = ("full",)

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """Of GaLore's LoRA row (arXiv 2403.03507), but for its rate, which is published as a grid
        from 1e-4 to 1e-2: the middle of that."""
        return Recipe(lr=1e-3, warmup_steps=steps // 10, weight_decay=0.0, clip=None)

    @property
    def folded(self) -> MethodOptions:
        return FullOptions("full")

    def scale(self, model: ModelConfig) -> float:
        return self.alpha / self.bottleneck(model)

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        return {"rank": int(self.bottleneck(model)), "alpha": self.alpha}

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f = model.d_model, model.d_ff
        F, R = model.inner.stored, self.bottleneck(model).stored
        frozen = [Weight((d_out, d_in), trainable=False) for d_in, d_out in model.linear_shapes]
        factors = self.factors(model)
        whole = sum(weight.elements for weight in frozen)
        low = sum(weight.elements for weight in factors)
        return all_or_input(
            model, length, policy, weights=(*frozen, *factors),
            forward=2 * (whole + low), backward=2 * whole + 4 * low,  # no gradient of W
            # the recomputation ends with what the last product needs: that is not run
            not_again=2 * d * f,
            # x, norm(x), v, rotated q and k, attention's output twice (x + attention), its norm;
            # gate and up, and their gated product; the seven rank-r vectors
            saved=8 * d + 3 * F + unnormed(model) + 7 * R,
            workspace=(2 * (F + d), 5 * F + 10 * d + 7 * R),
        )  # fmt: skip

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        yield from LoraBlock(model, work, self.bottleneck(model).stored).launches()
