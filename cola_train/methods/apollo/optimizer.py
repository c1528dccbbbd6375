"""Gradients scaled as AdamW would scale a random projection of them (APOLLO, arXiv 2412.05270,
algorithm 1).

W and G are (m, n), P and R as in `optim.sides`, N is Adam's direction for R. Row i of G on the
right, column i on the left, is multiplied by |N_i| / |R_i|; Mini multiplies all of G by |N| / |R|.
The result's norm grows by at most a hundredth a step (`matrices.limited`), and

    W -= lr * weight_decay * W, then W -= lr * scale * (what G became).

P has entries N(0, 1 / r). It is drawn again when it is needed, by seed, name and the number of
`refresh_every` steps that are over, and is no state. W, G and P on the left, R on the right are cut
by rows: on the right nothing is sent but what a norm of the whole matrix takes, on the left a sum
over processes is R, of which each has some rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_train.methods.apollo.draws import normal_rows
from cola_train.optim import AdamWOptions, sides
from cola_train.optim.groups import Groups
from cola_train.optim.matrices import Matrix, MatrixOptimizer, adam, decay, limited

FLOOR = 1e-8  # beside the norm of R


class ApolloAdamW(MatrixOptimizer):
    """State of a matrix: the moments `exp_avg` and `exp_avg_sq` of R, `step`, and `update_norm`,
    without dimensions, of the last update before `scale`."""

    def __init__(
        self,
        groups: Groups,
        options: AdamWOptions,
        *,
        rank: int,
        scale: float,
        refresh_every: int,
        mini: bool,
        seed: int,
    ) -> None:
        """scale: of updates; others: see `ApolloOptions` and `MatrixOptimizer`."""
        super().__init__(groups, options)
        self.r, self.scale, self.refresh_every = rank, scale, refresh_every
        self.mini, self.seed = mini, seed

    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        norm = torch.zeros((), device=matrix.weight.device)
        return {**matrix.moments(self.r), "update_norm": norm}

    def update(self, matrices: list[Matrix]) -> None:
        """Changes the gradients, too."""
        for matrix in matrices:
            self._update(matrix)

    def _update(self, matrix: Matrix) -> None:
        P, G, spread = self._projection(matrix), matrix.gradient, matrix.spread
        R = G @ P.T if matrix.right else spread.sum_rows(P.T @ G)
        U = G.mul_(self._factors(matrix, adam(R, matrix), R))
        norm = spread.sum(torch.linalg.vector_norm(U).square()).sqrt()
        limit = limited(norm, matrix.state["update_norm"])
        decay(matrix)
        matrix.weight.addcmul_(U, limit, value=-matrix.group["lr"] * self.scale)

    def _projection(self, matrix: Matrix) -> Tensor:
        """P, on the left this process's rows of it; zeros where the matrix is stored with some."""
        r, stored = matrix.rank(self.r), matrix.projection(self.r)
        shape = sides.projection(matrix.own_shape, r, matrix.right)
        key = f"{self.seed}/{matrix.name}/{matrix.t // self.refresh_every}"
        held = slice(0, stored[0]) if matrix.right else matrix.spread.held(stored[0])
        drawn = slice(min(held.start, shape[0]), min(held.stop, shape[0]))
        P = normal_rows(shape, drawn, key, matrix.weight.device).div_(r**0.5)
        rows = held.stop - held.start - len(P)
        return F.pad(P, (0, stored[1] - shape[1], 0, rows))

    def _factors(self, matrix: Matrix, N: Tensor, R: Tensor) -> Tensor:
        """Of the rows (rows, 1), of the columns (1, n), or of all (1, 1)."""
        dims = (0, 1) if self.mini else (1,) if matrix.right else (0,)
        squares = torch.stack([part.square().sum(dims, keepdim=True) for part in (N, R)])
        if 0 in dims:  # over rows, which processes share
            squares = matrix.spread.sum(squares)
        of_N, of_R = squares.sqrt()
        return of_N / (of_R + FLOOR)
