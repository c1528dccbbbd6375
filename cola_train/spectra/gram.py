"""Singular values of a matrix whose rows stream by.

Shapes: N rows, W columns. Those of X (N, W) are the square roots of the eigenvalues of X^T X, which
is small, and a sum over rows: of batches, and of processes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 2**26  # of rows that are copied to fp64 at a time
# A share of the energy that is short of alpha by less is alpha: sums of squares in fp64 are no
# nearer, and 19 of 20 equal singular values hold 0.95.
SLACK = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """values: singular values over the largest, W of them, descending; all 0 of a matrix of zeros.
    effective_rank: see `effective_rank`."""

    width: int
    effective_rank: int
    values: list[float]

    @classmethod
    def of(cls, singular_W: Tensor, alpha: float) -> "Spectrum":
        """singular_W: (W,), descending."""
        largest = float(singular_W[0])
        values = (singular_W / largest if largest else singular_W).tolist()
        return cls(len(values), effective_rank(values, alpha), values)

    def as_json(self) -> dict[str, Any]:
        """Values in the digits that are known of the largest."""
        return {**asdict(self), "values": [float(f"{value:.7g}") for value in self.values]}


def effective_rank(values: Sequence[float], alpha: float) -> int:
    """The least k whose first k squared singular values hold `alpha` of the sum of all squares; 0
    if all are 0. values: descending.

    Source: arXiv 2502.10940, section 3.1.
    """
    energy = torch.tensor(values, dtype=torch.float64).square().cumsum(0)
    needed = alpha * float(energy[-1]) * (1 - SLACK)
    return int((energy < needed).sum()) + 1 if needed else 0


class Gram:
    """X^T X of the rows so far, (W, W) fp64: as much memory after many rows as after one.

    An eigenvalue of it has an error of about 1e-16 of the largest, so that of a singular value that
    is 0 is about 1e-8 of the largest one.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, x_NW: Tensor) -> None:
        """More rows, of any floating dtype."""
        rows = max(1, CHUNK_BYTES // (8 * x_NW.shape[1]))
        for part in x_NW.split(rows):
            part = part.double()
            self.sum.addmm_(part.t(), part)

    def singular_values(self) -> Tensor | None:
        """Of X, (W,) fp64 on the CPU, descending, zeros where there are fewer rows than W. None: X
        was not finite."""
        if not self.sum.isfinite().all():
            return None
        values: Tensor = torch.linalg.eigvalsh(self.sum)
        return values.flip(0).clamp(min=0).sqrt().cpu()
