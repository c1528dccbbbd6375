"""Muon on the matrices of the blocks, AdamW on all else, in one optimizer; also on row shards.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon; torch.optim.Muon): of the average of a
matrix's gradients, the update is what five Newton-Schulz iterations in bf16 make of it: nearly the
closest matrix with orthonormal rows or columns. That needs the whole matrix. Where processes hold
rows of it, one of them gets all the rows, iterates, and sends each process its own back, as
microsoft/dion does: as many matrices at a time as there are processes, each on another one. What is
sent is bf16, which the iteration starts from and ends with, so nothing is lost.

A matrix is (m, n), stored with zeros or without; P processes of a shard group.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim._muon import (
    DEFAULT_A,
    DEFAULT_B,
    DEFAULT_C,
    EPS,
    _adjust_lr,
    _zeropower_via_newtonschulz,
)
from torch.optim.adamw import adamw

from cola_train.optim import MuonOptions
from cola_train.optim.groups import Groups, is_block_matrix

COEFFICIENTS = (DEFAULT_A, DEFAULT_B, DEFAULT_C)


def muon(groups: Groups, options: MuonOptions) -> "Muon":
    return Muon(divided(groups, options.adamw_lr_ratio), options)


def divided(groups: Groups, adamw_lr_ratio: float) -> Iterator[dict[str, Any]]:
    """Each group as one of matrices of blocks, and one of all else, which has a rate of its own if
    the group has none."""
    for group in groups:
        named = list(zip(group["params"], group["shapes"], strict=True))
        for matrices in (True, False):
            own = [(p, s) for p, s in named if is_block_matrix(p[0], p[1].ndim) is matrices]
            if not own:
                continue
            part = {**group, "matrices": matrices}
            part["params"], part["shapes"] = map(list, zip(*own, strict=True))
            if not matrices:
                part["lr_scale"] = group.get("lr_scale", adamw_lr_ratio)
            yield part


class Muon(Optimizer):
    """State of a matrix: `momentum_buffer`; of all else `exp_avg`, `exp_avg_sq` and `step`; as
    torch's own. A DTensor where the parameter is one, whose rows are cut among processes.

    Every process of a shard group calls `step`, with gradients of the same parameters.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], options: MuonOptions) -> None:
        self.options = options
        super().__init__(groups, {"lr": options.lr, "weight_decay": options.weight_decay})

    @torch.no_grad()
    def allocate(self) -> None:
        """Make the state as it is before the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter, group["matrices"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            if group["matrices"]:
                self._muon(group)
            else:
                self._adamw(group)

    def _state_of(self, parameter: Tensor, matrix: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            for key in ["momentum_buffer"] if matrix else ["exp_avg", "exp_avg_sq"]:
                state[key] = torch.zeros_like(parameter)
            if not matrix:
                state["step"] = torch.zeros((), device=parameter.device)
        return state

    def _muon(self, group: dict[str, Any]) -> None:
        shapes = zip(group["params"], group["shapes"], strict=True)
        trained = [(p, shape) for p, shape in shapes if p.grad is not None]
        # the largest first, so that those of one time are alike
        trained.sort(key=lambda each: each[0].numel(), reverse=True)
        processes = shard_group(trained[0][0]) if trained else None
        at_a_time = 1 if processes is None else processes.size()
        for i in range(0, len(trained), at_a_time):
            self._update(trained[i : i + at_a_time], group, processes)

    def _update(
        self,
        matrices: list[tuple[Tensor, torch.Size]],
        group: dict[str, Any],
        processes: ProcessGroup | None,
    ) -> None:
        """Of these with their own shapes, P or fewer."""
        updates = self._orthogonal([matrix for matrix, _ in matrices], processes)
        for (matrix, shape), update in zip(matrices, updates, strict=True):
            lr, rows = group["lr"], local(matrix)
            rows.mul_(1 - lr * group["weight_decay"])
            rows.add_(update, alpha=-_adjust_lr(lr, self.options.adjust_lr_fn, shape))

    def _orthogonal(self, matrices: list[Tensor], processes: ProcessGroup | None) -> list[Tensor]:
        """The updates of these, P or fewer: this process's rows of each, bf16."""
        rows = [local(matrix) for matrix in matrices]
        sizes = [part.numel() for part in rows]
        flat = torch.empty(sum(sizes), dtype=torch.bfloat16, device=rows[0].device)
        parts = [part.view(own.shape) for part, own in zip(flat.split(sizes), rows, strict=True)]
        for matrix, part in zip(matrices, parts, strict=True):
            part.copy_(self._averaged(matrix))
        if processes is None:
            return [newton_schulz(part, self.options.ns_steps) for part in parts]
        mine = processes.rank()
        m, n = matrices[mine].shape if mine < len(matrices) else (0, 0)
        sent = sizes + [0] * (processes.size() - len(sizes))
        held = [n * of for of in rows_by_process(m, processes.size())]
        whole = flat.new_empty(m, n)
        dist.all_to_all_single(whole.view(-1), flat, held, sent, group=processes)
        if m:
            whole = newton_schulz(whole, self.options.ns_steps).contiguous()
        dist.all_to_all_single(flat, whole.view(-1), sent, held, group=processes)
        return parts

    def _averaged(self, matrix: Tensor) -> Tensor:
        """This process's rows of what is to be orthogonalised, fp32; moves the average on."""
        assert matrix.grad is not None
        momentum = self.options.momentum
        average = local(self._state_of(matrix, True)["momentum_buffer"])
        gradient = local(matrix.grad)
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum) if self.options.nesterov else average

    def _adamw(self, group: dict[str, Any]) -> None:
        trained = [p for p in group["params"] if p.grad is not None]
        states = [self._state_of(p, False) for p in trained]
        first, second = self.options.betas
        adamw(
            [local(p) for p in trained],
            [local(p.grad) for p in trained],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.options.eps,
            maximize=False,
        )


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """torch.optim.Muon's; `matrix`, bf16, is overwritten."""
    result: Tensor = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, steps, EPS)
    return result


def local(tensor: Tensor) -> Tensor:
    """This process's rows, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(parameter: Tensor) -> ProcessGroup | None:
    """The processes that hold rows of it, in the order of their rows; None: this one has all."""
    if not isinstance(parameter, DTensor):
        return None
    group = parameter.device_mesh.get_group("shard")
    return group if group.size() > 1 else None


def rows_by_process(rows: int, processes: int) -> list[int]:
    """How many each of them holds, as FSDP2 cuts: the last ones have fewer, or none."""
    chunk = -(-rows // processes)
    return [max(0, min(chunk, rows - i * chunk)) for i in range(processes)]
