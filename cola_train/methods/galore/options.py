"""GaLore's options, its published recipes, and what its optimizer holds and sends."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cola_train.config.fields import PositiveFloat, PositiveInt
from cola_train.config.groups import ModelConfig
from cola_train.methods.costs import Weight
from cola_train.methods.projected import ProjectedOptions
from cola_train.methods.recipe import Recipe, by_size
from cola_train.optim import OptimOptions, sides
from cola_train.optim.costs import ADAM, DECAY, LIMIT, Product, UpdateCost

FP32 = 4  # bytes


@dataclass(frozen=True)
class GaloreOptions(ProjectedOptions):
    """Full-rank weights; AdamW in the r leading directions of gradients (arXiv 2403.03507)."""

    alpha: PositiveFloat = 0.25  # scales the update of projected matrices, not their weight decay
    # good steps between new projections; null: published for model.name (200, 7b 500)
    refresh_every: PositiveInt | None = None
    # how leading directions are found. exact: the same on any number of processes, each matrix's
    # on one of them; randomized: about the same ones, by a few matmuls
    svd: Literal["exact", "randomized"] = "exact"
    fira: bool = False  # also use what of the gradient is outside (Fira, arXiv 2410.01623)

    implementation = "cola_train.methods.galore.layers:Galore"

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """Section 5.1 of the paper and the official scripts."""
        return Recipe(
            lr=by_size((1e-2, 1e-2, 1e-2, 1e-2, 5e-3), size),
            warmup_steps=steps // 10,
            weight_decay=0.0,
            clip=by_size((None, None, None, None, 1.0), size),
        )

    def steps_of_a_projection(self, model: ModelConfig) -> int:
        return self.refresh_every or by_size((200, 200, 200, 200, 500), model.name)

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        """What the optimizer's state consists of."""
        return {"rank": int(self.bottleneck(model)), "fira": self.fira}

    def label(self, model: ModelConfig) -> str:
        return f"{super().label(model)}{', fira' if self.fira else ''}"

    def optimizer_elements(
        self, model: ModelConfig, optim: OptimOptions, weight: Weight, shards: int = 1
    ) -> int:
        if not weight.block_matrix:
            return super().optimizer_elements(model, optim, weight, shards)
        moment, projection = self.projected(model, weight, shards)
        return 2 * moment + projection

    def update_cost(
        self, model: ModelConfig, optim: OptimOptions, weights: Sequence[Weight], shards: int = 1
    ) -> UpdateCost:
        """Those of a step that keeps its projections; workspace is of one that makes them anew.
        All of it is in fp32."""
        passed = launches = held = 0
        products: Counter[Product] = Counter()
        traffic: Counter[str] = Counter()
        for weight in weights:
            if not weight.block_matrix:
                continue
            m, n = weight.shape
            rows, k = -(-m // shards), min(m, n)
            r, (moment, _) = min(self.bottleneck(model), k), self.projected(model, weight, shards)
            right = sides.on_the_right(weight.shape)
            sent = -(-r // shards) * shards * n if shards > 1 else 0
            products[Product(rows, r, n) if right else Product(r, n, rows)] += 1  # R
            products[Product(rows, n, r, adds=True)] += 1 + self.fira  # N, and R, back
            launches += ADAM.launches + DECAY.launches + (shards > 1) * (1 if right else 2)
            passed += ADAM.passes * moment + DECAY.passes * rows * n
            if self.fira:  # two norms and their ratio; what is outside scaled, shortened and added
                launches += 4 + 3 + LIMIT.launches + (shards > 1) * (1 if right else 2)
                passed += 2 * (moment if right else r * n) + (7 + LIMIT.passes) * rows * n
            traffic["all_gather"] += FP32 * sent  # P; on the left N
            if not right:
                traffic["reduce_scatter"] += FP32 * sent
                traffic["all_gather"] += FP32 * sent * self.fira
            # R, and what N is made of; N, R and the update
            held = max(held, sent + 3 * moment, sent + 2 * moment + rows * n * self.fira)
            # of a refresh: the gradient whole, from its parts; then a copy, vectors of both sides
            whole = m * n * (shards > 1)
            svd = m * n + (m + n) * k if self.svd == "exact" else 0
            held = max(held, whole + max(whole, svd))
        sizes = {kind: size for kind, size in traffic.items() if size}
        return UpdateCost(products, FP32, launches, FP32 * passed, FP32 * held, sizes)
