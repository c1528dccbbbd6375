"""The fp32 weights that the optimizer updates: whole on one process, shards on many.

What the optimizer and the gradient norm see are plain tensors: a call on a DTensor costs tens of
microseconds, and a step has hundreds of parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cola_train.engines.base import spread, trainable
from cola_train.model.init import local_rows


class Masters(ABC):
    """The fp32 weights by name; also `methods.base.Weights`.

    parameters: as a checkpoint holds them; trained: this process's part of those that are trained,
    plain tensors on the same memory.
    """

    optimizer: Optimizer
    parameters: dict[str, Tensor]
    trained: dict[str, Tensor]

    @abstractmethod
    def begin_micro_batch(self, sync: bool) -> None:
        """Before a backward pass. sync: its gradients are reduced over processes right away."""

    @abstractmethod
    def leaf(self, name: str) -> Tensor:
        """What autograd gives the parameter's gradient, whose hooks it calls."""

    @abstractmethod
    def take_gradient(self, name: str) -> Tensor | None:
        """Give `trained` the gradient of the step (fp32; this process's part of its mean over
        processes), and return it; None if there is none."""

    @abstractmethod
    def norm(self, norms: Sequence[Tensor]) -> Tensor:
        """The norm of the whole gradient, of those of the parts that `take_gradient` returns; an
        fp32 scalar on the device."""

    @abstractmethod
    def drop_gradient(self, name: str) -> None:
        """Free the gradient."""

    @abstractmethod
    def refresh(self) -> None:
        """Let the model compute with the masters as they are now."""

    @abstractmethod
    def full(self, name: str) -> Tensor: ...

    @abstractmethod
    def part(self, name: str) -> Tensor:
        """This process's part of the parameter, no copy."""

    @abstractmethod
    def assign(self, name: str, whole: Tensor) -> None: ...

    @abstractmethod
    def optimized(self, name: str) -> Tensor:
        """What stands for the parameter in the optimizer."""

    @abstractmethod
    def placed(self, name: str, state: Tensor) -> Tensor:
        """Optimizer state of the parameter, as a checkpoint holds it."""

    def take_gradients(self) -> dict[str, Tensor]:
        """All of the step that there are, by name."""
        gradients = {name: self.take_gradient(name) for name in self.trained}
        return {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def drop_gradients(self) -> None:
        for name in self.trained:
            self.drop_gradient(name)

    def names(self) -> list[str]:
        return list(self.parameters)

    def sample(self, name: str, most: int) -> Tensor:
        return spread(self.part(name).reshape(-1), most)

    def change_state(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        optimized = self.optimized(name)
        for value in self.optimizer.state.get(optimized, {}).values():
            if isinstance(value, Tensor) and value.shape == optimized.shape:
                placed = self.placed(name, value)
                whole = placed.full_tensor() if isinstance(placed, DTensor) else placed
                rows, first = local_rows(placed, name)
                rows.copy_(change(whole)[first : first + len(rows)])

    def states(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state, named and laid out as in a checkpoint."""
        for name in self.trained:
            for key, value in self.optimizer.state[self.optimized(name)].items():
                if isinstance(value, Tensor):
                    yield f"{name}.{key}", self.placed(name, value)


class WholeMasters(Masters):
    """Of a process that is alone: the model's own parameters in fp32; else it computes with copies
    in another dtype, whose gradients autograd adds up in fp32."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, compute_dtype: torch.dtype) -> None:
        """`optimizer` is the model's. Puts the copies in place of the model's parameters."""
        self.optimizer = optimizer
        masters = dict(model.named_parameters())
        self.parameters = {name: master.detach() for name, master in masters.items()}
        self.trained = {name: master for name, master in masters.items() if master.requires_grad}
        self.copies: dict[str, Tensor] = {}  # none in fp32
        if compute_dtype != torch.float32:
            _replace_parameters(model, compute_dtype)
            self.copies.update(model.named_parameters())

    def begin_micro_batch(self, sync: bool) -> None:
        pass

    def leaf(self, name: str) -> Tensor:
        return self.copies[name] if self.copies else self.trained[name]

    def take_gradient(self, name: str) -> Tensor | None:
        master = self.trained[name]
        if self.copies:
            copy = self.copies[name]
            master.grad, copy.grad = copy.grad, None
        return master.grad

    def norm(self, norms: Sequence[Tensor]) -> Tensor:
        return _norm_of(norms)

    def drop_gradient(self, name: str) -> None:
        self.trained[name].grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        if self.copies:
            torch._foreach_copy_([*self.copies.values()], [*self.parameters.values()])

    def full(self, name: str) -> Tensor:
        return self.parameters[name].clone()

    def part(self, name: str) -> Tensor:
        return self.parameters[name]

    @torch.no_grad()
    def assign(self, name: str, whole: Tensor) -> None:
        self.parameters[name].copy_(whole)
        if self.copies:
            self.copies[name].copy_(whole)

    def optimized(self, name: str) -> Tensor:
        return self.trained.get(name, self.parameters[name])

    def placed(self, name: str, state: Tensor) -> Tensor:
        return state


class ShardedMasters(Masters):
    """FSDP2's shards, DTensors. The optimizer gets plain tensors in their place if it is one of
    torch's fused ones (`takes_found_inf`), which update element by element; another may want to
    know the whole matrix."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, mesh: DeviceMesh) -> None:
        self.optimizer = optimizer
        self.modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in self.modules:  # the first time, FSDP2 moves shards that need padding
            module.unshard()
            module.reshard()
        self.shards = {name: cast(DTensor, p) for name, p in model.named_parameters()}
        self.parameters = {name: shard.detach() for name, shard in self.shards.items()}
        names = [name for name, _ in trainable(model)]
        self.trained = {name: cast(DTensor, self.parameters[name]).to_local() for name in names}
        self.group = mesh.get_group("shard")
        self.synced = True
        self.plain = takes_found_inf(optimizer)
        if self.plain:
            local_of = {id(self.shards[name]): local for name, local in self.trained.items()}
            for group in optimizer.param_groups:
                group["params"] = [local_of[id(shard)] for shard in group["params"]]

    def begin_micro_batch(self, sync: bool) -> None:
        if sync != self.synced:
            for module in self.modules:
                module.set_requires_gradient_sync(sync, recurse=False)
            self.synced = sync

    def leaf(self, name: str) -> Tensor:
        return self.shards[name]

    @torch.no_grad()
    def take_gradient(self, name: str) -> Tensor | None:
        gradient, local = cast(DTensor | None, self.shards[name].grad), self.trained[name]
        local.grad = None if gradient is None else gradient.to_local()
        return local.grad

    def norm(self, norms: Sequence[Tensor]) -> Tensor:
        norm = _norm_of(norms)
        if self.group.size() == 1:
            return norm
        # copies of a shard are in other groups: each element is counted once
        squares = norm.double().square()
        dist.all_reduce(squares, group=self.group)
        return squares.sqrt().float()

    def drop_gradient(self, name: str) -> None:
        self.shards[name].grad = self.trained[name].grad = None

    def refresh(self) -> None:
        """Drops gathered copies, which an evaluation leaves."""
        for module in self.modules:
            module.reshard()

    def full(self, name: str) -> Tensor:
        whole = cast(DTensor, self.parameters[name]).full_tensor()
        # where nothing is sharded it is the master itself, which the next step changes
        return whole.clone() if self.group.size() == 1 else whole

    def part(self, name: str) -> Tensor:
        return cast(DTensor, self.parameters[name]).to_local()

    def assign(self, name: str, whole: Tensor) -> None:
        self.refresh()
        rows, first = local_rows(self.parameters[name], name)
        rows.copy_(whole[first : first + len(rows)])

    def optimized(self, name: str) -> Tensor:
        return self.trained[name] if self.plain and name in self.trained else self.shards[name]

    def placed(self, name: str, state: Tensor) -> Tensor:
        shard, local = self.shards[name], self.trained[name]
        if isinstance(state, DTensor) or state.shape != local.shape:
            return state  # a counter, the same on every process
        return DTensor.from_local(
            state,
            shard.device_mesh,
            shard.placements,
            run_check=False,
            shape=shard.shape,
            stride=shard.stride(),
        )


def takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether it is one of torch's fused optimizers, whose step does nothing where the tensor
    `found_inf` is 1, and else divides gradients by the tensor `grad_scale`; `torch.amp.GradScaler`
    asks the same."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def _replace_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Copies in `dtype` in place of a model's parameters."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            copy = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
            if copy.requires_grad:
                copy.grad_dtype = torch.float32
            setattr(module, name, copy)


def _norm_of(norms: Sequence[Tensor]) -> Tensor:
    """Of a tensor whose parts have these, as torch.nn.utils.get_total_norm computes it."""
    return torch.linalg.vector_norm(torch.stack(list(norms)))
