"""The rank that low-rank methods share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cola_train.config.fields import PositiveFraction, PositiveInt
from cola_train.config.groups import ModelConfig
from cola_train.config.widths import RankWidth
from cola_train.methods.costs import Weight
from cola_train.methods.options import MethodOptions, Run
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class RankOptions(MethodOptions):
    """A method whose linears have a rank r."""

    rank_ratio: PositiveFraction | None = None  # r / d_model; null: model.rank_ratio
    rank: PositiveInt | None = None  # r; wins over rank_ratio; weights of that width are aligned

    def bottleneck(self, model: ModelConfig) -> RankWidth:
        """The rank r of a model's linears."""
        if self.rank is not None:
            return RankWidth(self.rank)
        return RankWidth(round((self.rank_ratio or model.rank_ratio) * model.d_model))

    def rank_of(self, model: ModelConfig, projection: str) -> RankWidth:
        """The rank of one of a block's linears."""
        return self.bottleneck(model)

    def ranks_of(self, model: ModelConfig) -> dict[str, RankWidth]:
        """Of each of them."""
        return {projection: self.rank_of(model, projection) for projection in model.linears}

    def factors(self, model: ModelConfig) -> tuple[Weight, ...]:
        """A (r, d_in) and B (d_out, r) of each linear of a block."""
        ranks = self.ranks_of(model)
        return tuple(
            Weight(shape)
            for projection, (d_in, d_out) in model.linears.items()
            for shape in ((ranks[projection], d_in), (d_out, ranks[projection]))
        )

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        others = {k: v for k, v in super().identity(model).items() if k != "rank_ratio"}
        return {**others, "rank": int(self.bottleneck(model))}

    def label(self, model: ModelConfig) -> str:
        return f"rank {self.bottleneck(model)}"

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        r, d_model = self.bottleneck(run.model), run.model.d_model
        if not 1 <= r <= d_model:
            field = "rank_ratio" if self.rank is None else "rank"
            yield (
                f"method.{field}: gives a rank of {r}; it must be from 1 to model.d_model "
                f"({d_model})"
            )
