"""The FSDP2 engine: fp32 weights, gradients and optimizer state, sharded where there are several
processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine, allocate_state, persistent_buffers
from cola_train.engines.fsdp.graph import CapturedStep
from cola_train.engines.fsdp.in_backward import UpdatesInBackward
from cola_train.engines.fsdp.masters import Masters, ShardedMasters, WholeMasters, takes_found_inf
from cola_train.engines.fsdp.options import FSDPOptions
from cola_train.hardware import compute_dtype
from cola_train.methods.base import Method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama
from cola_train.parallel.shard import build_mesh, shard


class FSDPEngine(Engine):
    """Built from a model on the meta device; leaves it initialised, and sharded if this process is
    not alone.

    norms: of the last step's gradients, by parameter: of this process's parts, before clipping.
    """

    masters: Masters
    norms: dict[str, Tensor]

    def __init__(self, config: Config, model: Llama, method: Method, device: torch.device) -> None:
        options, topology = config.engine, distributed.topology()
        assert isinstance(options, FSDPOptions)
        dtype = compute_dtype(config.train.precision, device)
        alone = topology.world == 1
        if not alone:
            mesh = build_mesh(options.copy_size(topology), device.type)
            shard(model, mesh, dtype, options.reshard_after_forward)
        model.to_empty(device=device)
        initialise(model, config.seed)
        self.model, self.module, self.method, self.device = model, model, method, device
        self.optimizer = method.optimizer(model, config.optim)
        self.masters = (
            WholeMasters(model, self.optimizer, dtype)
            if alone
            else ShardedMasters(model, self.optimizer, mesh)
        )
        self.in_backward = (
            UpdatesInBackward(self.masters) if config.method.updates_in_backward else None
        )
        self.captured = CapturedStep(self.optimizer, device) if config.train.cuda_graph else None
        self.clip = config.optim.clip
        self.sync_every_micro_batch = options.sync_every_micro_batch

    def device_step(
        self, batches: Sequence[Batch], lr: float | Tensor, limits: Tensor
    ) -> tuple[Tensor, list[str]]:
        step = super().device_step
        if self.captured is None:
            return step(batches, lr, limits)
        return self.captured(step, batches, lr, limits)

    def backward(self, loss: Tensor, accept: Tensor | None) -> None:
        last = accept is not None
        self.masters.begin_micro_batch(sync=last or self.sync_every_micro_batch)
        loss.backward()

    @torch.no_grad()
    def update(self, figures: Tensor) -> Tensor:
        accepted = figures[0].bool()
        if self.in_backward is None:
            gradients = self.masters.take_gradients()
            norms = torch._foreach_norm([*gradients.values()])
            self.norms = dict(zip(gradients, norms, strict=True))
            norm = self.masters.norm(norms)
            accepted = accepted & norm.isfinite()
            self._step_if(accepted, [*gradients.values()], norm)
            self.masters.drop_gradients()
        else:  # all is updated, whether it should have been or not
            self.norms = self.in_backward.take_norms()
            norm = self.masters.norm([*self.norms.values()])
            accepted = accepted & norm.isfinite()
        self.masters.refresh()
        return torch.cat([figures, torch.stack([norm, accepted]).double()])

    def _step_if(self, accepted: Tensor, gradients: list[Tensor], norm: Tensor) -> None:
        """Clip, and step the optimizer, or neither."""
        # By how much the gradient is too long: 1 where it is not.
        excess = None if self.clip is None else ((norm + 1e-6) / self.clip).clamp_(min=1)
        optimizer: Any = self.optimizer
        if takes_found_inf(optimizer):  # it divides by grad_scale
            optimizer.found_inf, optimizer.grad_scale = (~accepted).float(), excess
            optimizer.step()
            del optimizer.found_inf, optimizer.grad_scale
        elif accepted:  # the host waits for the device
            if excess is not None:
                torch._foreach_div_(gradients, excess)
            optimizer.step()

    def gradient_norm(self, names: Sequence[str]) -> Tensor:
        return self.masters.norm([self.norms[name] for name in names if name in self.norms])

    def close(self) -> None:
        pass  # nothing outlives it

    def stored_weights(self) -> Masters:
        return self.masters

    def stored_state(self) -> dict[str, Tensor]:
        if not self.optimizer.state:
            masters = self.masters
            allocate_state(self.optimizer, [masters.optimized(name) for name in masters.trained])
        state = {f"model.{name}": weight for name, weight in self.masters.parameters.items()}
        state |= {f"model.{name}": buffer for name, buffer in persistent_buffers(self.model)}
        return state | {f"optimizer.{name}": value for name, value in self.masters.states()}

    def load_state_dict(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        self.masters.refresh()  # the tensors are the masters' and the optimizer's own
