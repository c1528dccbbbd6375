"""APOLLO's options, and what its optimizer holds and sends."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cola_train.config.fields import PositiveFloat, PositiveFraction, PositiveInt
from cola_train.config.groups import ModelConfig
from cola_train.config.widths import RankWidth
from cola_train.methods.costs import Weight
from cola_train.methods.options import Run
from cola_train.methods.projected import ProjectedOptions
from cola_train.methods.recipe import Recipe
from cola_train.optim import OptimOptions, sides
from cola_train.optim.costs import ADAM, DECAY, LIMIT, Kernels, Product, UpdateCost
from cola_train.parallel.topology import Topology

FP32 = 4  # bytes
MOST = 256  # the largest rank unless another is asked for (arXiv 2412.05270, section 5)
DRAW = Kernels(29, 101)  # P, in passes over fp32: of int64, most of them, as two each


@dataclass(frozen=True)
class ApolloOptions(ProjectedOptions):
    """Full-rank weights; gradients scaled as AdamW scales their projections (arXiv 2412.05270)."""

    rank_ratio: PositiveFraction | None = None  # r / d_model; null: a quarter, but at most 256
    rank: PositiveInt | None = None  # r; wins over rank_ratio
    mini: bool = False  # rank 1, and one factor for a whole matrix (APOLLO-Mini)
    scale: PositiveFloat | None = None  # its root scales updates; null: 1, with mini 128
    refresh_every: PositiveInt = 200  # good steps between new projections

    implementation = "cola_train.methods.apollo.layers:Apollo"

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """The official scripts' for all sizes; see docs/methods.md."""
        return Recipe(lr=1e-2, warmup_steps=steps // 10, weight_decay=0.0, clip=None)

    def bottleneck(self, model: ModelConfig) -> RankWidth:
        if self.mini:
            return RankWidth(1)
        if self.rank is None and self.rank_ratio is None:
            return RankWidth(max(1, min(model.d_model // 4, MOST)))
        return super().bottleneck(model)

    @property
    def update_scale(self) -> float:
        """Which the update of a matrix is multiplied by; not its weight decay."""
        scale = (128.0 if self.mini else 1.0) if self.scale is None else self.scale
        return float(scale**0.5)

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        """What the optimizer's state consists of."""
        return {"rank": int(self.bottleneck(model))}

    def label(self, model: ModelConfig) -> str:
        return "mini" if self.mini else super().label(model)

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        for field in ("rank", "rank_ratio"):
            if self.mini and (value := getattr(self, field)) is not None:
                yield (
                    f"method.{field}: {value} has no effect with method.mini=true, whose rank is "
                    "1; leave it out, or use method.mini=false"
                )

    def optimizer_elements(
        self, model: ModelConfig, optim: OptimOptions, weight: Weight, shards: int = 1
    ) -> int:
        if not weight.block_matrix:
            return super().optimizer_elements(model, optim, weight, shards)
        moment, _ = self.projected(model, weight, shards)
        return 2 * moment

    def update_cost(
        self, model: ModelConfig, optim: OptimOptions, weights: Sequence[Weight], shards: int = 1
    ) -> UpdateCost:
        """As apollo/optimizer.py does it, of one matrix after the other."""
        passed = launches = workspace = reduced = norms = 0
        products: Counter[Product] = Counter()
        for weight in weights:
            if not weight.block_matrix:
                continue
            (m, n), r = weight.shape, min(self.bottleneck(model), *weight.shape)
            rows, right = -(-m // shards), sides.on_the_right(weight.shape)
            products[Product(rows, r, n) if right else Product(r, n, rows)] += 1
            # P while it is drawn, 20 bytes an entry; P, R and three of R's shape
            P, R = (r * n, rows * r) if right else (rows * r, r * n)
            workspace = max(workspace, 20 * P, FP32 * (P + 4 * R))
            moment, _ = self.projected(model, weight, shards)
            # the factors, of squares of N and R; G scaled, and added to W
            launches += DRAW.launches + ADAM.launches + 8 + 2 + LIMIT.launches + DECAY.launches
            passed += DRAW.passes * P + (ADAM.passes + 6) * moment
            passed += (5 + LIMIT.passes + DECAY.passes) * rows * n
            if shards > 1:  # sums of R on the left, of squares, of the limiter's norm
                launches += (not right) + (self.mini or not right) + 1
            if not right:
                reduced += FP32 * -(-r // shards) * shards * n
                norms += FP32 * 2 * n
        traffic = {"reduce_scatter": reduced}
        if not self.mini:  # whose norms are single numbers
            traffic["all_reduce"] = norms
        sent = traffic if shards > 1 else {}
        return UpdateCost(products, FP32, launches, FP32 * passed, workspace, sent)
