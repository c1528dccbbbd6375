"""AdamW in the leading singular directions of gradients (GaLore, arXiv 2403.03507, algorithm 2),
with Fira's share of what is outside of them (arXiv 2410.01623).

W and G are (m, n), P and R as in `optim.sides`, N is Adam's direction for R:

    W -= lr * alpha * (N P on the right, P N on the left), then W -= lr * weight_decay * W.

P comes from the gradient of every `refresh_every`-th good step, the first one too; moments stay as
they are. All of it is in fp32. W, G and P on the left, R on the right are cut by rows: so on the
right nothing but P is sent, on the left a sum over processes is R, of which each has some rows.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cola_train.methods.galore.subspace import randomized_right_vectors, right_vectors
from cola_train.optim import AdamWOptions, sides
from cola_train.optim.groups import Groups
from cola_train.optim.matrices import Matrix, MatrixOptimizer, adam, decay, limited, local

FLOOR = 1e-8  # beside the norm that Fira divides by, as its official code has it


class GaloreAdamW(MatrixOptimizer):
    """State of a matrix: `projection`, the moments `exp_avg` and `exp_avg_sq` of R, `step`; with
    Fira `residual_norm`, without dimensions."""

    def __init__(
        self,
        groups: Groups,
        options: AdamWOptions,
        *,
        rank: int,
        alpha: float,
        refresh_every: int,
        exact: bool,
        fira: bool,
        seed: int,
    ) -> None:
        """exact: singular vectors; else randomized ones, drawn by seed, name and step. Others: see
        `GaloreOptions` and `MatrixOptimizer`."""
        super().__init__(groups, options)
        self.r, self.alpha, self.refresh_every = rank, alpha, refresh_every
        self.exact, self.fira, self.seed = exact, fira, seed

    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        device = matrix.weight.device
        # the projection is made in the first step
        P = matrix.spread.zeros(matrix.projection(self.r), device)
        state = {"projection": P, **matrix.moments(self.r)}
        return state | ({"residual_norm": torch.zeros((), device=device)} if self.fira else {})

    def update(self, matrices: list[Matrix]) -> None:
        self._refresh_due(matrices)
        for matrix in matrices:
            self._update(matrix)

    def _refresh_due(self, matrices: list[Matrix]) -> None:
        """New projections where they are due. Each SVD runs on one process, of all of them in
        turn: as many at a time as there are processes, of which each then holds one gradient whole.
        """
        due = [matrix for matrix in matrices if matrix.t % self.refresh_every == 0]
        processes = dist.get_world_size() if dist.is_initialized() else 1
        for start in range(0, len(due), processes):
            self._refresh(due[start : start + processes])

    def _refresh(self, matrices: Sequence[Matrix]) -> None:
        """Process i does matrix i."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        mine = None
        for owner, matrix in enumerate(matrices):  # all of them, before anyone is busy
            whole = matrix.spread.gather_to(owner, matrix.gradient, matrix.shape[0])
            mine = whole if owner == rank else mine
        if mine is not None:
            mine = self._projection(matrices[rank], mine)
        for owner, matrix in enumerate(matrices):
            own = sides.projection(matrix.own_shape, matrix.rank(self.r), matrix.right)
            P = mine if owner == rank else matrix.weight.new_empty(own)
            assert P is not None
            if dist.is_initialized():
                dist.broadcast(P, src=owner)
            (rows, columns), held = matrix.projection(self.r), matrix.spread.held
            P = F.pad(P, (0, columns - own[1], 0, rows - own[0]))  # as it is stored
            local(matrix.state["projection"]).copy_(P[held(rows)])

    def _projection(self, matrix: Matrix, gradient: Tensor) -> Tensor:
        """P by the whole gradient, both without the zeros that are stored."""
        m, n = matrix.own_shape
        G = gradient[:m, :n] if matrix.right else gradient[:m, :n].T
        r = matrix.rank(self.r)
        if self.exact:
            P = right_vectors(G, r)
        else:
            P = randomized_right_vectors(G, r, f"{self.seed}/{matrix.name}/{matrix.t}")
        return (P if matrix.right else P.T).contiguous()

    def _update(self, matrix: Matrix) -> None:
        spread, W, G, r = matrix.spread, matrix.weight, matrix.gradient, matrix.rank(self.r)
        P, step = local(matrix.state["projection"]), matrix.group["lr"]
        if matrix.right:
            P = spread.gather(P, r)
            R = G @ P.T
            N = adam(R, matrix)
            W.addmm_(N, P, alpha=-step * self.alpha)
        else:
            R = spread.sum_rows(P.T @ G)
            N = spread.gather(adam(R, matrix), r)
            W.addmm_(P, N, alpha=-step * self.alpha)
        if self.fira:
            W.add_(self._residual(matrix, P, R, N), alpha=-step)
        decay(matrix)

    def _residual(self, matrix: Matrix, P: Tensor, R: Tensor, N: Tensor) -> Tensor:
        """Fira's update by what the projection leaves out of the gradient, (rows, n): scaled row by
        row on the right, column by column on the left, as Adam scales R."""
        if matrix.right:
            outside = torch.addmm(matrix.gradient, R, P, alpha=-1)
        else:
            R = matrix.spread.gather(R, len(N))
            outside = torch.addmm(matrix.gradient, P, R, alpha=-1)
        dim = 1 if matrix.right else 0
        outside *= N.norm(dim=dim, keepdim=True) / (R.norm(dim=dim, keepdim=True) + FLOOR)
        norm = matrix.spread.sum(torch.linalg.vector_norm(outside).square()).sqrt()
        return outside.mul_(limited(norm, matrix.state["residual_norm"]))
