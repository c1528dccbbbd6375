"""LoRA-Muon (Cesista, Crowson, Simal, Biderman, arXiv 2606.12921, algorithm 1).

Muon's step on W = B A is the steepest descent within a ball of the spectral norm. Among the
tangents of rank-r matrices, dB A + B dA, and with half the ball for each term, it is

    dA = -eta / 2 R_B msign(R_B M_A)      dB = -eta / 2 msign(M_B R_A) R_A

with R_A = (A A')^(-1/2), R_B = (B' B)^(-1/2): each term is orthogonal but for eta / 2, and the
step of W is the same for all factors of it. Decay is W's, W <- (1 - lr wd) W, half on each:

    s = sqrt(1 - lr wd)      A <- s A + dA / s      B <- s B + dB / s

so that the tangent's part of W's step is dB A + B dA whatever the decay.

Ours: any K with K' K = (A A')^-1 does for R_A, as K = Q R_A with Q orthogonal: msign(M K') K =
msign(M R_A) Q' Q R_A. K is the inverse of Cholesky's L. The paper iterates for R. As it does,
`ridge` |S| I (Frobenius) is added to S = A A', which bounds what a factor's smallest singular
value does to the other's step.

The formulas are as secondary sources give them (zij's page and others' notes on the paper), since
its own text was not at hand. A, B, M, eta and msign as in optim/factors.py.
"""

import torch
from torch import Tensor
from torch.optim._muon import EPS

from cola_train.optim import LoraMuonOptions
from cola_train.optim.factors import FactorOptimizer, Pair


class LoraMuon(FactorOptimizer):
    """State of a factor: `momentum_buffer`."""

    options: LoraMuonOptions

    def update_pair(self, pair: Pair) -> None:
        A, B = pair
        K_A = self.whitening(A.weight @ A.weight.t())
        K_B = self.whitening(B.weight.t() @ B.weight)
        M_A, M_B = self._averaged(A), self._averaged(B)
        dA = K_B.t() @ self.orthogonalised((K_B @ M_A).bfloat16()).float()
        dB = self.orthogonalised((M_B @ K_A.t()).bfloat16()).float() @ K_A
        shrunk = [(1 - f.group["lr"] * f.group["weight_decay"]) ** 0.5 for f in pair]
        for factor, update, own, others in zip(pair, (dA, dB), shrunk, shrunk[::-1], strict=True):
            step = self.rate(factor, pair) / 2
            factor.weight.mul_(own).add_(update, alpha=-step / others)

    def whitening(self, gram: Tensor) -> Tensor:
        """K of S (r, r), which gets its ridge."""
        gram.diagonal().add_(gram.norm().mul_(self.options.ridge).add_(EPS))
        L, _ = torch.linalg.cholesky_ex(gram)
        return torch.linalg.solve_triangular(L, torch.eye(len(L), device=L.device), upper=False)
