"""Muon on the matrices of the blocks, AdamW on all else, in one optimizer; also on row shards.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon; torch.optim.Muon): of the average of a
matrix's gradients, the update is what five Newton-Schulz iterations in bf16 make of it: nearly the
closest matrix with orthonormal rows or columns. That needs the whole matrix. Where processes hold
rows of it, one of them gets all the rows, iterates, and sends each process its own back, as
microsoft/dion does: as many matrices at a time as there are processes, each on another one. What is
sent is bf16, which the iteration starts from and ends with, so nothing is lost.

Two variants, each by an option of its own; the second is of one process alone:

- `ns_coefficients=polar_express` (Amsel et al., arXiv 2505.16932, algorithm 1): the iteration's
  polynomial is another one in each step, the best there for singular values from 1e-3 on. After
  five steps these are 0.84 to 1.13, where Keller Jordan's iteration leaves 0.47 to 1.21.
- `second_momentum=b` (NorMuon, arXiv 2510.05491): O's rows are divided by the root of the average
  v <- b v + (1 - b) |row|^2, and all of it is scaled to O's norm. Rows of a wide matrix have length
  1 already, so there it is columns, as in modded-nanogpt; the paper has rows alone.

A matrix is (m, n), stored with zeros or without; P processes of a shard group.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim._muon import (
    DEFAULT_A,
    DEFAULT_B,
    DEFAULT_C,
    EPS,
    _adjust_lr,
    _zeropower_via_newtonschulz,
)

from cola_train.optim import MuonOptions
from cola_train.optim.groups import Groups, is_block_matrix
from cola_train.optim.matrices import Matrix, MatrixOptimizer, decay, local

COEFFICIENTS = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
# arXiv 2505.16932, its published code: of step 1, 2, ...; SAFETY widens each polynomial's interval
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01


def divided(groups: Groups, adamw_lr_ratio: float) -> Iterator[dict[str, Any]]:
    """Each group as one of matrices of blocks, and one of all else, which has a rate of its own if
    the group has none."""
    for group in groups:
        named = list(zip(group["params"], group["shapes"], strict=True))
        for matrices in (True, False):
            own = [(p, s) for p, s in named if is_block_matrix(p[0], p[1].ndim) is matrices]
            if not own:
                continue
            part = dict(group)
            part["params"], part["shapes"] = map(list, zip(*own, strict=True))
            if not matrices:
                part["lr_scale"] = group.get("lr_scale", adamw_lr_ratio)
            yield part


class Muon(MatrixOptimizer):
    """State of a matrix: `momentum_buffer`, as torch's own; `second_momentum_buffer`, of rows or
    columns, if that option is given."""

    def __init__(self, groups: Groups, options: MuonOptions) -> None:
        self.options = options
        super().__init__(list(divided(groups, options.adamw_lr_ratio)), options)

    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        state = {"momentum_buffer": torch.zeros_like(matrix.parameter)}
        if self.options.second_momentum is not None:
            m, n = matrix.shape
            shape = (m, 1) if m >= n else (1, n)
            state["second_momentum_buffer"] = matrix.spread.zeros(shape, matrix.weight.device)
        return state

    def update(self, matrices: list[Matrix]) -> None:
        # the largest first, so that those of one time are alike
        matrices = sorted(matrices, key=lambda matrix: matrix.parameter.numel(), reverse=True)
        at_a_time = matrices[0].spread.processes if matrices else 1
        for i in range(0, len(matrices), at_a_time):
            self._update(matrices[i : i + at_a_time])

    def _update(self, matrices: list[Matrix]) -> None:
        """Of these, P or fewer; nothing of it is held when the next ones come."""
        for matrix, update in zip(matrices, self._orthogonal(matrices), strict=True):
            lr = _adjust_lr(matrix.group["lr"], self.options.adjust_lr_fn, matrix.own_shape)
            decay(matrix)
            if self.options.second_momentum is not None:
                lengths = local(matrix.state["second_momentum_buffer"])
                update = evened(update, lengths, self.options.second_momentum)
            matrix.weight.add_(update, alpha=-lr)

    def _orthogonal(self, matrices: list[Matrix]) -> list[Tensor]:
        """The updates of these, P or fewer: this process's rows of each, bf16."""
        rows = [matrix.weight for matrix in matrices]
        sizes = [part.numel() for part in rows]
        flat = torch.empty(sum(sizes), dtype=torch.bfloat16, device=rows[0].device)
        parts = [part.view(own.shape) for part, own in zip(flat.split(sizes), rows, strict=True)]
        for matrix, part in zip(matrices, parts, strict=True):
            part.copy_(self._averaged(matrix))
        spread = matrices[0].spread
        if spread.group is None:
            return [self.orthogonalised(part) for part in parts]
        mine = spread.group.rank()
        m, n = matrices[mine].shape if mine < len(matrices) else (0, 0)
        sent = sizes + [0] * (spread.processes - len(sizes))
        held = [n * of for of in spread.counts(m)]
        whole = flat.new_empty(m, n)
        dist.all_to_all_single(whole.view(-1), flat, held, sent, group=spread.group)
        if m:
            whole = self.orthogonalised(whole).contiguous()
        dist.all_to_all_single(flat, whole.view(-1), sent, held, group=spread.group)
        return parts

    def orthogonalised(self, matrix: Tensor) -> Tensor:
        """Of a whole matrix, bf16, which is overwritten."""
        if self.options.ns_coefficients == "polar_express":
            return polar_express(matrix, self.options.ns_steps)
        return newton_schulz(matrix, self.options.ns_steps)

    def _averaged(self, matrix: Matrix) -> Tensor:
        """This process's rows of what is to be orthogonalised, fp32; moves the average on."""
        momentum, gradient = self.options.momentum, matrix.gradient
        average = local(matrix.state["momentum_buffer"])
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum) if self.options.nesterov else average


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """torch.optim.Muon's; `matrix`, bf16, is overwritten."""
    result: Tensor = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, steps, EPS)
    return result


def polar_express(matrix: Tensor, steps: int) -> Tensor:
    """The same iteration by the coefficients of each step; `matrix`, bf16, is overwritten."""
    tall = len(matrix) > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x.div_(x.norm().clamp(min=EPS))
    for i, (a, b, c) in enumerate(POLAR_EXPRESS[:steps]):
        # the first one's input too is shorter by it; the last one, which is at rest, has none
        safety = SAFETY ** (2 if i == 0 else int(i + 1 < len(POLAR_EXPRESS)))
        gram = x @ x.t()
        square = torch.addmm(gram, gram, gram, beta=b / safety**3, alpha=c / safety**5)
        x = torch.addmm(x, square, x, beta=a / safety)
    return x.t() if tall else x


def evened(update: Tensor, average: Tensor, momentum: float) -> Tensor:
    """NorMuon's normalisation of what is orthogonal: lines of its longer side by the root of the
    `average` (m, 1) or (1, n) of their squared lengths, which moves on. fp32, of the same norm."""
    x = update.float()
    lengths = x.norm(dim=1 if average.shape[1] == 1 else 0, keepdim=True)
    average.lerp_(lengths.square(), 1 - momentum)
    x.div_(average.sqrt().add_(EPS))
    return x.mul_(lengths.norm() / x.norm())
