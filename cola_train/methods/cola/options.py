"""CoLA's options: where SiLU stands, or what does in its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from cola_train.config.fields import NaturalFloat, PositiveFloat
from cola_train.config.groups import PROJECTIONS, ModelConfig
from cola_train.errors import UserError
from cola_train.methods.bottleneck.launches import DOWN, GATE_UP, OUT, QKV, Silus
from cola_train.methods.bottleneck.options import BottleneckOptions
from cola_train.methods.costs import BlockCost, Weight
from cola_train.methods.options import Run
from cola_train.parallel.topology import Topology

Placement = Literal["low_rank", "both", "full_rank"]


@dataclass(frozen=True)
class ColaOptions(BottleneckOptions):
    """Every linear of a block as an auto-encoder of rank r, `B silu(A x)` (arXiv 2502.10940)."""

    # low_rank: SiLU on the rank-r vectors only; full_rank: on SwiGLU's gate only (plain low-rank
    # layers); both. null: model.activation
    activation: Placement | None = None
    # what is on the rank-r vectors: silu, relu2 (ReLU squared), gelu; SwiGLU's gate keeps SiLU
    sigma: Literal["silu", "relu2", "gelu"] = "silu"
    # alpha: B begins as it does, plus alpha / sqrt(K) times copies of the identity, K of them as
    # many as make up the width (DLR, arXiv 2606.28932); null: none
    dlr_init: PositiveFloat | None = None
    init_scale: PositiveFloat = 1.0  # times the std with which A and B begin
    # with what number gates begin, one for each projection and block, by which its z = A x of the
    # block before is added to this one's before the function (LaX, arXiv 2505.21732); null: none
    lax: NaturalFloat | None = None

    implementation = "cola_train.methods.cola.layers:Cola"

    @property
    def own_sigma(self) -> bool:
        return self.sigma != "silu"

    @property
    def beside(self) -> list[str]:
        return super().beside + (["method.lax"] if self.lax is not None else [])

    def placement(self, model: ModelConfig) -> Placement:
        return self.activation or cast(Placement, model.activation)

    def silus(self, model: ModelConfig) -> Silus:
        placement = self.placement(model)
        return Silus(placement != "full_rank", placement != "low_rank")

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        beginnings = ("dlr_init", "init_scale")
        found = {k: v for k, v in super().identity(model).items() if k not in beginnings}
        return {**found, "activation": self.placement(model), "lax": self.lax is not None}

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        """With gates each z is kept twice, before and after it is added to. Those of the first
        block have no effect: all blocks are alike."""
        cost = super().block_cost(model, length, policy, fused)
        if self.lax is None:
            return cost
        gates = tuple(Weight((len(names),)) for names in (QKV, OUT, (*GATE_UP, *DOWN)))
        seven = sum(rank.stored for rank in self.ranks_of(model).values())
        return replace(cost, weights=cost.weights + gates, saved=cost.saved + seven)

    def exported(self, model: ModelConfig) -> dict[str, Any]:
        """Raises UserError for what no exported model has."""
        if self.beside:
            raise UserError(f"{self.beside[0]}: a model that has it cannot be exported")
        return super().exported(model)

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
        elif self.own_sigma and not self.silus(run.model).rank_r:
            yield (
                f"method.sigma: {self.sigma} has no effect where the rank-r vectors have no "
                "function; use method.activation=low_rank or both, or leave it out"
            )
        if self.lax is not None:
            if run.recompute.name != "none":
                yield (
                    f"method.lax: recompute={run.recompute.name} would take blocks by themselves; "
                    "use recompute=none"
                )
            if topology.world > 1:
                yield "method.lax: is for one process; leave it out"
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
