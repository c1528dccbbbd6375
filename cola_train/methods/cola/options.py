"""CoLA's options: where SiLU stands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from cola_train.config.groups import PROJECTIONS, ModelConfig
from cola_train.methods.bottleneck.launches import Silus
from cola_train.methods.bottleneck.options import BottleneckOptions
from cola_train.methods.options import Run
from cola_train.parallel.topology import Topology

Placement = Literal["low_rank", "both", "full_rank"]


@dataclass(frozen=True)
class ColaOptions(BottleneckOptions):
    """Every linear of a block as an auto-encoder of rank r, `B silu(A x)` (arXiv 2502.10940)."""

    # low_rank: SiLU on the rank-r vectors only; full_rank: on SwiGLU's gate only (plain low-rank
    # layers); both. null: model.activation
    activation: Placement | None = None

    def placement(self, model: ModelConfig) -> Placement:
        return self.activation or cast(Placement, model.activation)

    def silus(self, model: ModelConfig) -> Silus:
        placement = self.placement(model)
        return Silus(placement != "full_rank", placement != "low_rank")

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        return {**super().identity(model), "activation": self.placement(model)}

    @classmethod
    def of_exported(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Also of the reference code, which says `only_lr_act` in place of `activation`, and whose
        rank is a quarter of the width if it says none."""
        activation = fields.get("activation")
        if activation is None:
            activation = "low_rank" if fields.get("only_lr_act", True) else "both"
        if activation not in get_args(Placement):
            choices = ", ".join(get_args(Placement))
            raise ValueError(f"activation: must be one of {choices}, got {activation!r}")
        return {**exported_ranks(fields), "activation": activation}

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        if self.placement(run.model) not in get_args(Placement):
            choices = ", ".join(get_args(Placement))
            yield f"model.activation: must be one of {choices}, got {run.model.activation!r}"
        yield from super().problems(run, topology)


def exported_ranks(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options `rank` and `ranks`, by config.json's fields.

    Raises:
        ValueError: they say what no model has.
    """
    width, ranks = fields["hidden_size"], fields.get("ranks") or {}
    if not isinstance(ranks, Mapping) or not set(PROJECTIONS).issuperset(ranks):
        raise ValueError(f"ranks: must be of {', '.join(PROJECTIONS)}, got {ranks!r}")
    found = {f"ranks: {name}": rank for name, rank in ranks.items()}
    rank = None
    if len(ranks) < len(PROJECTIONS):
        rank = width // 4 if fields.get("rank") is None else fields["rank"]
        found["rank"] = rank
    for name, each in found.items():
        if not isinstance(each, int) or each < 1:
            raise ValueError(f"{name}: must be a whole number of at least 1, got {each!r}")
        if each > width:
            raise ValueError(f"{name}: {each} is more than hidden_size ({width})")
    return {"rank": rank, "ranks": dict(ranks)}
