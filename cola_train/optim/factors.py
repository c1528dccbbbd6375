"""Muon for pairs of factors: Spectron and LoRA-Muon, which step A and B by what B A does.

A is (r, n), B (m, r), named `<projection>_A` and `<projection>_B`; M_A, M_B are the averages of
their gradients (`momentum`; with `nesterov` looking ahead, which neither paper has), msign(X) is
what Newton-Schulz makes of X: nearly U V' of X = U S V'. eta = lr f(m, n) with f by
`adjust_lr_fn`, as Muon would have it for the product's shape: the papers have f = 1. Shapes are
the model's own, without zeros. A matrix without a partner gets Muon's step.

Both are about the product. Between CoLA's factors stands s = SiLU, whose slope is at most 1.1: the
map's derivative is B s'(A x) A, so that a bound holds up to that, and what is said to be the same
for all factors of one product is not quite, because CoLA's function is another one for each.

On one process, or with all rows on each (`OptimOptions.one_process`).
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch.optim._muon import _adjust_lr

from cola_train.errors import UserError
from cola_train.optim import FactorOptions
from cola_train.optim.groups import Groups
from cola_train.optim.matrices import Matrix
from cola_train.optim.muon import Muon


class Pair(NamedTuple):
    """The factors of a product B A in one step."""

    A: Matrix
    B: Matrix

    @property
    def shape(self) -> torch.Size:
        """Of the product, (m, n), without zeros."""
        return torch.Size([self.B.own_shape[0], self.A.own_shape[1]])


def paired(matrices: list[Matrix]) -> tuple[list[Pair], list[Matrix]]:
    """Pairs, and those without a partner."""
    named = {matrix.name: matrix for matrix in matrices}
    stems = [name[:-2] for name in named if name.endswith("_A") and f"{name[:-2]}_B" in named]
    pairs = [Pair(named.pop(f"{stem}_A"), named.pop(f"{stem}_B")) for stem in stems]
    return pairs, list(named.values())


class FactorOptimizer(Muon):
    """Steps pairs as a subclass does it."""

    def __init__(self, groups: Groups, options: FactorOptions) -> None:
        """Raises UserError where nothing is a factor."""
        super().__init__(groups, options)
        names = [name for group in self.param_groups for name in group["param_names"]]
        if not any(name.endswith("_A") for name in names):
            raise UserError(
                f"optim: {options.name} steps pairs of factors, of which this method has none; "
                "use optim=muon"
            )

    @abstractmethod
    def update_pair(self, pair: Pair) -> None:
        """Change a pair's weights and state by its gradients."""

    def update(self, matrices: list[Matrix]) -> None:
        pairs, others = paired(matrices)
        for pair in pairs:
            self.update_pair(pair)
        super().update(others)

    def rate(self, factor: Matrix, pair: Pair) -> float:
        """eta, of a factor whose group may have a rate of its own."""
        return _adjust_lr(factor.group["lr"], self.options.adjust_lr_fn, pair.shape)
