"""The FSDP2 engine: fp32 shards of weights, gradients and optimizer state."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.config.schema import Config
from cola_train.engines.base import Engine, persistent_buffers, trainable, zero_state
from cola_train.engines.fsdp.options import FSDPOptions
from cola_train.hardware import compute_dtype
from cola_train.methods.base import Method
from cola_train.model.init import initialise, local_rows
from cola_train.model.llama import Llama
from cola_train.parallel.shard import build_mesh, shard


class FSDPEngine(Engine):
    """Built from a model on the meta device; leaves it sharded and initialised."""

    def __init__(self, config: Config, model: Llama, method: Method, device: torch.device) -> None:
        options = config.engine
        assert isinstance(options, FSDPOptions)
        mesh = build_mesh(options.copy_size(distributed.topology()), device.type)
        dtype = compute_dtype(config.train.precision, device)
        shard(model, mesh, dtype, options.reshard_after_forward)
        model.to_empty(device=device)
        initialise(model, config.seed)
        self.model, self.module, self.method, self.device = model, model, method, device
        self.optimizer = method.optimizer(model, config.optim)
        self.masters = ShardedWeights(model, self.optimizer)
        self.clip = config.optim.clip
        self.sync_every_micro_batch = options.sync_every_micro_batch

    def backward(self, loss: Tensor, accept: Tensor | None) -> None:
        last = accept is not None
        module = cast(FSDPModule, self.model)
        module.set_requires_gradient_sync(last or self.sync_every_micro_batch)
        loss.backward()

    def update(self, lr: float, figures: Tensor) -> tuple[list[float], float, bool]:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # The step's one transfer to the host.
        *figures_here, norm_here = torch.cat([figures, norm.double()[None]]).tolist()
        accepted = bool(figures_here[0]) and math.isfinite(norm_here)
        if accepted:
            if self.clip is not None:
                clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
            self.set_learning_rate(lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return figures_here, norm_here, accepted

    def close(self) -> None:
        pass  # nothing outlives it

    def stored_weights(self) -> "ShardedWeights":
        return self.masters

    def stored_state(self) -> dict[str, Tensor]:
        reshard(self.model)
        if not self.optimizer.state:
            self._allocate_optimizer_state()
        state = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        state |= {f"model.{name}": buffer for name, buffer in persistent_buffers(self.model)}
        for name, parameter in trainable(self.model):
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    state[f"optimizer.{name}.{key}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        pass  # the tensors are the model's and the optimizer's own

    def _allocate_optimizer_state(self) -> None:
        """A step of size zero makes the optimizer allocate its state, for a checkpoint to fill."""
        parameters = [parameter for _, parameter in trainable(self.model)]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.set_learning_rate(0.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        zero_state(self.optimizer, parameters)


def reshard(model: nn.Module) -> None:
    """Drop gathered copies, which an evaluation leaves; the optimizer knows the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class ShardedWeights:
    """See `methods.base.Weights`: the parameters themselves are the fp32 masters."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.parameters = dict(model.named_parameters())

    def names(self) -> list[str]:
        return list(self.parameters)

    def full(self, name: str) -> Tensor:
        whole = self.parameters[name].detach()
        return whole.full_tensor() if isinstance(whole, DTensor) else whole.clone()

    def assign(self, name: str, whole: Tensor) -> None:
        reshard(self.model)
        rows, first = local_rows(self.parameters[name].detach(), name)
        rows.copy_(whole[first : first + len(rows)])

    def reset_state(self, name: str) -> None:
        parameter = self.parameters[name]
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.zero_()
