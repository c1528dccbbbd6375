"""Spectron (Janson, Oyallon, Belilovsky, arXiv 2602.12429, equation 16 and algorithms 1, 3):

    rho = eta / (|A| + |B| + 1)      A <- A - rho msign(M_A)      B <- B - rho msign(M_B)

with spectral norms |.|. As |msign| = 1 and rho <= 1, the product's change, dB A + B dA + dB dA,
has a spectral norm of at most rho (|A| + |B| + rho) <= eta. Norms are estimated by one power
iteration a step, from the vector of the step before; decay is decoupled, of each factor.

The formulas are as secondary sources give them (NVIDIA's Emerging-Optimizers, reviews of the
paper), since its own text was not at hand; the momentum, its form and all rates are ours to tune.
A, B, eta and msign as in optim/factors.py.
"""

import torch
from torch import Tensor
from torch.optim._muon import EPS

from cola_train.optim.factors import FactorOptimizer, Pair
from cola_train.optim.matrices import Matrix, decay, local


class Spectron(FactorOptimizer):
    """State of a factor: `momentum_buffer`, and `singular_vector` (n, 1), the right one."""

    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        columns = matrix.shape[1]
        generator = torch.Generator().manual_seed(columns)
        vector = torch.randn(columns, 1, generator=generator) / columns**0.5
        own = vector.to(matrix.weight)
        return super().begin(matrix) | {"singular_vector": matrix.spread.state(own, columns)}

    def update_pair(self, pair: Pair) -> None:
        for factor in pair:
            decay(factor)
        size = spectral_norm(pair.A).add_(spectral_norm(pair.B)).add_(1)
        for factor in pair:
            (update,) = self._orthogonal([factor])
            step = self.rate(factor, pair) / size
            factor.weight.sub_(update.float().mul_(step))


def spectral_norm(matrix: Matrix) -> Tensor:
    """By one power iteration on the state's vector: at most the true norm, a scalar."""
    W, vector = matrix.weight, local(matrix.state["singular_vector"])
    left = W @ vector
    left.div_(left.norm().clamp_(min=EPS))
    right = W.t() @ left
    norm = right.norm()
    vector.copy_(right.div_(norm.clamp(min=EPS)))
    return norm
