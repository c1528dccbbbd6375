"""Low rank's options, and what DLR's expansion adds to a block's cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cola_train.config.fields import PositiveFloat
from cola_train.config.groups import ModelConfig
from cola_train.methods.bottleneck.launches import AutoEncoderBlock, Silus
from cola_train.methods.bottleneck.options import BottleneckOptions
from cola_train.methods.costs import CacheCost
from cola_train.methods.low_rank.launches import ExpandingBlock
from cola_train.methods.options import MethodOptions, Run
from cola_train.parallel.topology import Topology


@dataclass(frozen=True)
class LowRankOptions(BottleneckOptions):
    """Every linear of a block as B A x of rank r, begun as CoLA's; SwiGLU keeps its SiLU."""

    # alpha of DLR (arXiv 2606.28932): copies of z = A x side by side, as many as make up the width,
    # by alpha / sqrt(their number), are added to B z; needs no parameter; null: none
    dlr: PositiveFloat | None = None

    implementation = "cola_train.methods.low_rank.layers:LowRank"

    def silus(self, model: ModelConfig) -> Silus:
        return Silus(rank_r=False, gate=True)

    def label(self, model: ModelConfig) -> str:
        return super().label(model) + (f", DLR {self.dlr:g}" if self.dlr else "")

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        yield from super().problems(run, topology)
        if self.dlr is not None and self.one_rank(run.model) is None:
            yield (
                "method.ranks: DLR's copies (method.dlr) are of one rank for all projections; "
                "leave one of the two out"
            )

    @property
    def folded(self) -> MethodOptions:
        return replace(self, dlr=None)

    def caches(self, model: ModelConfig) -> dict[str, CacheCost]:
        """DLR's values are no product of the rank-r vectors, until it is folded."""
        found = super().caches(model)
        return found if self.dlr is None else {"kv": found["kv"]}

    def fuses_middle(self, model: ModelConfig) -> bool:
        """Not with DLR, which adds no product and keeps nothing more, but comes between them."""
        return self.dlr is None and super().fuses_middle(model)

    @property
    def block_kind(self) -> type[AutoEncoderBlock]:
        return AutoEncoderBlock if self.dlr is None else ExpandingBlock
