"""The rank that each projection uses, and what a model of these ranks would save."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cola_train.config.widths import RankWidth
from cola_train.spectra.recorder import Linear, Measured


@dataclass(frozen=True)
class Savings:
    """Parameters of the linears looked at, as they are and with the advised ranks. A token's FLOPs
    in them are twice as many forward, and four times as many backward."""

    before: int
    after: int

    @property
    def parameters(self) -> int:
        return self.before - self.after


def advised_ranks(measured: Sequence[Measured]) -> dict[str, int]:
    """Of each projection the largest rank that a block uses, up to the next that is stored without
    zeros, but no more than there is."""
    ranks: dict[str, int] = {}
    for each in measured:
        used = RankWidth(used_rank(each)).stored
        ranks[each.linear.projection] = max(ranks.get(each.linear.projection, 1), used)
    for each in measured:
        linear = each.linear
        most = linear.rank or min(linear.d_in, linear.d_out)
        ranks[linear.projection] = min(ranks[linear.projection], most)
    return ranks


def used_rank(measured: Measured) -> int:
    """The larger effective rank of a bottleneck's z and s; of a dense linear, that of its outputs:
    they are nearest to outputs of that rank, and factors of that rank give them."""
    places = [measured.spectra[p] for p in ("z", "s") if p in measured.spectra]
    return max(of.effective_rank for of in places or [measured.spectra["output"]])


def savings(linears: Sequence[Linear], ranks: Mapping[str, int]) -> Savings:
    return Savings(
        before=sum(linear.parameters for linear in linears),
        after=sum(linear.with_rank(ranks[linear.projection]) for linear in linears),
    )
