"""Norms of the factors of linears that have two, and by how much a step changes them.

Shapes: A (r, d_in), B (d_out, r). All but a few products is in r dimensions: the singular values of
A are the roots of the eigenvalues of G = A A^T, (r, r), those of BA the roots of those of G H, H =
B^T B.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from cola_train import distributed
from cola_train.methods.base import Weights

COLD, WARM = 64, 16  # power iterations on the first vectors, and on those of the last time
RESOLVED = 1e7  # the largest condition that squares in fp64 can tell
NAMES = (
    "norm_a",
    "norm_b",
    "norm_ba",
    "frobenius_a",
    "frobenius_b",
    "frobenius_ba",
    "condition",
)
SAMPLE = 1 << 16  # elements of a factor, of each process, that are compared with those before

Product = Callable[[Tensor], Tensor]


def factors(names: Iterable[str]) -> dict[tuple[str, int], str]:
    """(projection, block) of each linear that has two factors, to what its name begins with: of
    layers.3.attention.qkv.q_A and ..._B to layers.3.attention.qkv.q."""
    names, found = set(names), {}
    for name in sorted(names):
        start, ending = name[:-2], name[-2:]
        if name.startswith("layers.") and ending == "_A" and f"{start}_B" in names:
            block, projection = int(name.split(".")[1]), start.rpartition(".")[2]
            found[projection, block] = start
    return found


@dataclass
class Norms:
    """Of one linear. Its vectors go on from one time to the next: weights change little meanwhile,
    so that few iterations do."""

    vectors: dict[str, Tensor] = field(default_factory=dict)

    def figures(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """fp64 scalars, nan where there is none. A and B: fp32."""
        A, B = A.double(), B.double()
        G, H = A @ A.t(), B.t() @ B
        (of_G, no_G), (of_H, no_H) = (torch.linalg.cholesky_ex(X) for X in (G, H))
        iterations = WARM if self.vectors else COLD
        largest = partial(self._largest, iterations, G.new_zeros(len(G)))
        most = largest("ba", partial(torch.mv, G), partial(torch.mv, H))
        # 1 / the smallest is the largest of the inverse
        inverse = largest("inverse", partial(_solve, of_H), partial(_solve, of_G))
        condition = (most * inverse).sqrt()
        known = (condition < RESOLVED) & (no_G == 0) & (no_H == 0)
        return {
            "norm_a": largest("a", _same, partial(torch.mv, G)).sqrt(),
            "norm_b": largest("b", _same, partial(torch.mv, H)).sqrt(),
            "norm_ba": most.sqrt(),
            "frobenius_a": G.trace().sqrt(),
            "frobenius_b": H.trace().sqrt(),
            "frobenius_ba": (G * H).sum().clamp(min=0).sqrt(),
            "condition": torch.where(known, condition, torch.nan),
        }

    def _largest(
        self, iterations: int, zero: Tensor, name: str, first: Product, second: Product
    ) -> Tensor:
        """The largest eigenvalue of the product of two symmetric matrices without negative ones,
        by power iteration: a scalar, at most that. 0 if it makes 0 of everything."""
        generator = torch.Generator().manual_seed(0)  # of its own: the run's is not touched
        start = zero + torch.randn(len(zero), generator=generator, dtype=zero.dtype).to(zero)
        w = self.vectors.get(name, start)
        for _ in range(iterations):
            u = first(w)
            after = second(u)
            value = after @ u / (w @ u)
            length = after.norm()
            usable = length.isfinite() & (length > 0)
            w = torch.where(usable, after / length, start)
        self.vectors[name] = w
        return torch.where(u.norm() > 0, value, 0.0 * length)


def _same(w: Tensor) -> Tensor:
    return w


def _solve(cholesky: Tensor, w: Tensor) -> Tensor:
    return torch.cholesky_solve(w[:, None], cholesky)[:, 0]


class Updates:
    """By how much a step changes weights, beside their size."""

    def __init__(self, weights: Weights, names: Sequence[str]) -> None:
        """Before the step."""
        self.before = {name: weights.sample(name, SAMPLE) for name in names}

    def ratios(self, weights: Weights) -> dict[str, float]:
        """After it: norm of the change over norm of what was changed, by name; nan of zeros. All
        processes call it together."""
        sums = []
        for name, before in self.before.items():
            change = weights.sample(name, SAMPLE) - before
            sums += [change.double().square().sum(), before.double().square().sum()]
        if not sums:
            return {}
        of_all = distributed.sum_over_ranks(torch.stack(sums).tolist())
        pairs = zip(of_all[::2], of_all[1::2], strict=True)
        return {
            name: math.sqrt(change / size) if size else math.nan
            for name, (change, size) in zip(self.before, pairs, strict=True)
        }
