"""Methods of full-rank weights whose optimizer has its moments in a projection to rank r."""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.config.groups import ModelConfig
from cola_train.methods.costs import Weight
from cola_train.methods.full.options import FullOptions
from cola_train.methods.options import Run
from cola_train.methods.per_layer import PerLayerOptions
from cola_train.methods.rank import RankOptions
from cola_train.optim import sides
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class ProjectedOptions(PerLayerOptions, RankOptions, FullOptions):
    """Full rank's layers and their costs; an AdamW of the method's own, with optim=adamw's options.

    Of a matrix with fewer than r rows or columns the rank is their number.
    """

    needs_matrices = True

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        if run.optim.name != "adamw":
            yield (
                f"optim: method={self.name} has an AdamW of its own, which takes the options of "
                f"optim=adamw; use that, got optim={run.optim.name}"
            )

    def projected(self, model: ModelConfig, weight: Weight, shards: int) -> tuple[int, int]:
        """Elements of R and of P (see `optim.sides`) of a matrix of a block that `shards` processes
        cut by rows, on the one that holds most."""
        shape, right = weight.shape, sides.on_the_right(weight.shape)
        r = min(self.bottleneck(model), *shape)

        def held(shape: tuple[int, int]) -> int:
            rows, columns = shape
            return -(-rows // shards) * columns

        return held(sides.projected(shape, r, right)), held(sides.projection(shape, r, right))
