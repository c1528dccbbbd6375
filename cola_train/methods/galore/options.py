"""GaLore's options, its published recipes, and what its optimizer holds and sends."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cola_train.config.fields import PositiveFloat, PositiveInt
from cola_train.config.groups import ModelConfig
from cola_train.methods.costs import Weight
from cola_train.methods.projected import ProjectedOptions
from cola_train.methods.recipe import Recipe, by_size
from cola_train.optim import OptimOptions, sides


@dataclass(frozen=True)
class GaloreOptions(ProjectedOptions):
    """Full-rank weights, whose AdamW has its moments in the r leading singular directions of an
    earlier gradient (GaLore, arXiv 2403.03507)."""

    alpha: PositiveFloat = 0.25  # scales the update of projected matrices, not their weight decay
    # good steps between new projections; null: published for model.name (200, 7b 500)
    refresh_every: PositiveInt | None = None
    # of the gradient, whose leading directions are kept. exact: the same on any number of
    # processes, each matrix on one of them; randomized: about the same, by a few matmuls
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

    def update_traffic(
        self, model: ModelConfig, weight: Weight, shards: int
    ) -> Iterator[tuple[str, int]]:
        """Of a step that keeps its projections."""
        if not weight.block_matrix or shards == 1:
            return
        r = min(self.bottleneck(model), *weight.shape)
        sent = -(-r // shards) * shards * weight.shape[1]
        yield "all_gather", sent  # P; on the left Adam's direction
        if not sides.on_the_right(weight.shape):
            yield "reduce_scatter", sent
            if self.fira:
                yield "all_gather", sent
