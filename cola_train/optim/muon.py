"""Muon on the matrices of the blocks, AdamW on all else, in one optimizer; also on row shards.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon; torch.optim.Muon): of the average of a
matrix's gradients, the update is what five Newton-Schulz iterations in bf16 make of it: nearly the
closest matrix with orthonormal rows or columns. That needs the whole matrix. Where processes hold
rows of it, one of them gets all the rows, iterates, and sends each process its own back, as
microsoft/dion does: as many matrices at a time as there are processes, each on another one. What is
sent is bf16, which the iteration starts from and ends with, so nothing is lost.

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
    """State of a matrix: `momentum_buffer`, as torch's own."""

    def __init__(self, groups: Groups, options: MuonOptions) -> None:
        self.options = options
        super().__init__(list(divided(groups, options.adamw_lr_ratio)), options)

    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(matrix.parameter)}

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
            return [newton_schulz(part, self.options.ns_steps) for part in parts]
        mine = spread.group.rank()
        m, n = matrices[mine].shape if mine < len(matrices) else (0, 0)
        sent = sizes + [0] * (spread.processes - len(sizes))
        held = [n * of for of in spread.counts(m)]
        whole = flat.new_empty(m, n)
        dist.all_to_all_single(whole.view(-1), flat, held, sent, group=spread.group)
        if m:
            whole = newton_schulz(whole, self.options.ns_steps).contiguous()
        dist.all_to_all_single(flat, whole.view(-1), sent, held, group=spread.group)
        return parts

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
