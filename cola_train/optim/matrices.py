"""What optimizers of whole matrices share: a weight as a process holds it, Adam on what it is
projected to, and AdamW for every parameter that is no matrix of a block.

W and G are (m, n), all of their rows or this process's; P and R as in `optim.sides`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from cola_train.optim import AdamOptions, sides
from cola_train.optim.groups import Groups, is_block_matrix

# as torch calls them since 2.13, and before
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

LIMIT = 1.01  # by which the norm of an update may grow from one step to the next


def local(tensor: Tensor) -> Tensor:
    """This process's part, a plain tensor on the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Spread:
    """How the rows of a tensor are spread over processes: in equal chunks, of which the last ones
    may be shorter or empty, as FSDP2 cuts them. State beside a parameter is spread like it.

    mesh, placements: as a DTensor has them; without a mesh the tensor is whole.
    """

    mesh: DeviceMesh | None = None
    placements: tuple[Placement, ...] = ()

    @classmethod
    def of(cls, parameter: Tensor) -> "Spread":
        if isinstance(parameter, DTensor):
            return cls(parameter.device_mesh, tuple(parameter.placements))
        return cls()

    @cached_property
    def group(self) -> ProcessGroup | None:
        """Of the processes that share the rows; None: this one has them all."""
        group = None if self.mesh is None else self.mesh.get_group("shard")
        return group if group is not None and group.size() > 1 else None

    @property
    def processes(self) -> int:
        """How many share the rows."""
        return 1 if self.group is None else self.group.size()

    def counts(self, rows: int) -> list[int]:
        """How many of so many rows each process holds."""
        chunk = -(-rows // self.processes)
        return [max(0, min(chunk, rows - i * chunk)) for i in range(self.processes)]

    def chunk(self, rows: int) -> int:
        """How many of so many rows the first process holds."""
        return self.counts(rows)[0]

    def held(self, rows: int) -> slice:
        """Which of so many rows this process holds."""
        counts, index = self.counts(rows), 0 if self.group is None else self.group.rank()
        first = sum(counts[:index])
        return slice(first, first + counts[index])

    def state(self, own: Tensor, rows: int) -> Tensor:
        """Optimizer state of so many rows, of which `own` are this process's: a DTensor, or `own`
        itself if it is whole."""
        if self.mesh is None:
            return own
        shape = torch.Size([rows, *own.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            own, self.mesh, self.placements, run_check=False, shape=shape, stride=stride
        )

    def zeros(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """State of that whole shape."""
        held = self.held(shape[0])
        own = torch.zeros((held.stop - held.start, *shape[1:]), device=device)
        return self.state(own, shape[0])

    def gather(self, own: Tensor, rows: int) -> Tensor:
        """All of so many rows, of which `own` are this process's. Collective."""
        if self.group is None:
            return own
        padded = self.padded(own, rows)
        whole = own.new_empty(len(padded) * self.group.size(), *own.shape[1:])
        all_gather(whole, padded, group=self.group)
        return whole[:rows]

    def gather_to(self, owner: int, own: Tensor, rows: int) -> Tensor | None:
        """All of so many rows on process `owner` of all processes, elsewhere None. Collective."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        if self.group is None:
            return own if rank == owner else None
        if owner not in dist.get_process_group_ranks(self.group):
            return None  # it has them from processes of its own group
        padded, parts = self.padded(own, rows), None
        if rank == owner:
            parts = [torch.empty_like(padded) for _ in range(self.group.size())]
        dist.gather(padded, parts, dst=owner, group=self.group)
        return None if parts is None else torch.cat(parts)[:rows]

    def padded(self, own: Tensor, rows: int) -> Tensor:
        """This process's rows, as many as the first process holds: contiguous, with zeros after."""
        missing = self.chunk(rows) - len(own)
        return F.pad(own, (0, 0) * (own.dim() - 1) + (0, missing)) if missing else own.contiguous()

    def sum(self, part: Tensor) -> Tensor:
        """The sum of the processes' parts, in place. Collective."""
        if self.group is not None:
            dist.all_reduce(part, group=self.group)
        return part

    def sum_rows(self, part: Tensor) -> Tensor:
        """This process's rows of the sum of the processes' parts. Collective."""
        if self.group is None:
            return part
        rows, held = len(part), self.held(len(part))
        chunk = self.chunk(rows)
        missing = chunk * self.group.size() - rows
        part = F.pad(part, (0, 0) * (part.dim() - 1) + (0, missing)) if missing else part
        own = part.new_empty(chunk, *part.shape[1:])
        reduce_scatter(own, part.contiguous(), group=self.group)
        return own[: held.stop - held.start]


@dataclass(frozen=True)
class Matrix:
    """A matrix of a block in one step of its optimizer.

    parameter: as the optimizer has it; state: of it, by key; group: its parameter group.
    own_shape: of the whole matrix without the zeros that it is stored with; it decides the side on
        which it is projected.
    """

    name: str
    parameter: Tensor
    state: dict[str, Tensor]
    group: Mapping[str, Any]
    own_shape: torch.Size

    @property
    def shape(self) -> torch.Size:
        """Of the whole matrix, (m, n), as it is stored."""
        return self.parameter.shape

    @property
    def right(self) -> bool:
        return sides.on_the_right(self.own_shape)

    @cached_property
    def spread(self) -> Spread:
        return Spread.of(self.parameter)

    @cached_property
    def weight(self) -> Tensor:
        """This process's rows, (rows, n) on the parameter's memory."""
        return local(self.parameter.detach())

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of these rows."""
        return local(cast(Tensor, self.parameter.grad))

    @property
    def t(self) -> int:
        """Good steps that it has taken, by its `moments`: 0 in the first one."""
        return int(self.state["step"])

    def rank(self, r: int) -> int:
        """A rank that is r, or less where the matrix has not so many rows or columns."""
        return min(r, *self.own_shape)

    def projected(self, r: int) -> tuple[int, int]:
        """The shape of R, as it is stored."""
        return sides.projected(self.shape, self.rank(r), self.right)

    def projection(self, r: int) -> tuple[int, int]:
        """The shape of P, as it is stored."""
        return sides.projection(self.shape, self.rank(r), self.right)

    def moments(self, r: int) -> dict[str, Tensor]:
        """State of R for `adam`, before the first step."""
        shape, device = self.projected(r), self.weight.device
        return {
            "step": torch.zeros(()),  # on the host, which decides by it
            "exp_avg": self.spread.zeros(shape, device),
            "exp_avg_sq": self.spread.zeros(shape, device),
        }


class MatrixOptimizer(Optimizer, ABC):
    """Updates matrices of blocks as a subclass does it; by torch's AdamW what is none.

    State is cut by rows, a DTensor, where the parameter is. Only parameters with a gradient are
    updated. Collective: processes have gradients of the same parameters.
    """

    def __init__(self, groups: Groups, options: AdamOptions) -> None:
        """groups: with names and `shapes`, as `parameter_groups` makes them."""
        first, second = options.betas
        defaults = {
            "lr": options.lr,
            "betas": (first, second),
            "eps": options.eps,
            "weight_decay": options.weight_decay,
        }
        super().__init__(groups, defaults)

    @abstractmethod
    def begin(self, matrix: Matrix) -> dict[str, Tensor]:
        """The matrix's state before its first step."""

    @abstractmethod
    def update(self, matrices: list[Matrix]) -> None:
        """Change weights and state by the gradients: of all matrices of one step."""

    @torch.no_grad()
    def allocate(self) -> None:
        """Make all state, as it is before the first step."""
        for group in self.param_groups:
            self._parts(group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients are there"
        matrices: list[Matrix] = []
        for group in self.param_groups:
            of_blocks, others = self._parts(group, with_gradient=True)
            self._adamw(others, group)
            matrices += of_blocks
        self.update(matrices)

    def _parts(
        self, group: Mapping[str, Any], with_gradient: bool = False
    ) -> tuple[list[Matrix], list[Tensor]]:
        """A group's matrices of blocks and its other parameters, all of them or those with a
        gradient; their state is made if there is none."""
        matrices: list[Matrix] = []
        others: list[Tensor] = []
        named = zip(group["param_names"], group["params"], group["shapes"], strict=True)
        for name, parameter, own_shape in named:
            if with_gradient and parameter.grad is None:
                continue
            state = self.state[parameter]
            if is_block_matrix(name, parameter.dim()):
                matrix = Matrix(name, parameter, state, group, own_shape)
                state |= {} if state else self.begin(matrix)
                matrices.append(matrix)
            else:
                state |= {} if state else adamw_state(parameter)
                others.append(parameter)
        return matrices, others

    def _adamw(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        """As `optim.adamw` does."""
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [local(parameter.detach()) for parameter in parameters],
            [local(cast(Tensor, parameter.grad)) for parameter in parameters],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """Before the first step."""
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adam(gradient: Tensor, matrix: Matrix) -> Tensor:
    """Adam's direction, corrected for the moments' bias (arXiv 1412.6980): (m / (1 - b1^(t+1))) /
    (sqrt(v / (1 - b2^(t+1))) + eps). The `Matrix.moments`, of the shape of the gradient that is
    given, change in place, and `step` counts this one."""
    first, second = matrix.group["betas"]
    m, v = local(matrix.state["exp_avg"]), local(matrix.state["exp_avg_sq"])
    m.lerp_(gradient, 1 - first)
    v.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    matrix.state["step"] += 1
    steps = matrix.t
    root = (v / (1 - second**steps)).sqrt_().add_(matrix.group["eps"])
    return (m / (1 - first**steps)).div_(root)


def decay(matrix: Matrix) -> None:
    """Weight decay, apart from the update: W -= lr * weight_decay * W."""
    matrix.weight.mul_(1 - matrix.group["lr"] * matrix.group["weight_decay"])


def limited(norm: Tensor, last: Tensor) -> Tensor:
    """By which factor an update of that norm is to be shortened, so that its norm is at most LIMIT
    times that of the step before (Fira, arXiv 2410.01623, section 4.3; APOLLO has the same).

    last: of the step before, changed in place to this step's; 0 is before the first one.
    """
    most = LIMIT * last
    factor = torch.where((last > 0) & (norm > most), most / norm, torch.ones_like(norm))
    last.copy_(factor * norm)
    return factor
