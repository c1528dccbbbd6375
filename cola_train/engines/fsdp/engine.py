"""The FSDP2 engine: mixed precision, accumulation, clipping and the optimizer step."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.config.schema import Config
from cola_train.engines.base import StepResult, zero_state
from cola_train.engines.fsdp.options import FSDPOptions
from cola_train.hardware import compute_dtype
from cola_train.methods.base import Method
from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX
from cola_train.parallel.shard import build_mesh, shard

if TYPE_CHECKING:
    from cola_train.data.loader import Batch


class FSDPEngine:
    """See `Engine`. Built from a model on the meta device; leaves it sharded and initialised."""

    def __init__(self, config: Config, model: Llama, method: Method, device: torch.device) -> None:
        engine = config.engine
        assert isinstance(engine, FSDPOptions)
        mesh = build_mesh(engine.copy_size(distributed.topology()), device.type)
        dtype = compute_dtype(config.train.precision, device)
        shard(model, mesh, dtype, engine.reshard_after_forward)
        model.to_empty(device=device)
        model.init_weights(config.seed)
        self.model, self.method, self.device = model, method, device
        self.optimizer = method.optimizer(model, config.optim)
        self.clip = config.optim.clip
        self.sync_every_micro_batch = engine.sync_every_micro_batch

    def train_step(
        self, batches: "list[Batch]", lr: float, max_loss: float = math.inf
    ) -> StepResult:
        local_tokens = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)
        tokens = distributed.sum_over_ranks([local_tokens])[0]
        # FSDP averages gradients over processes; the loss is a mean over the global batch's tokens
        scale = distributed.world_size() / max(tokens, 1)
        local_loss = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            cast(FSDPModule, self.model).set_requires_gradient_sync(
                last or self.sync_every_micro_batch
            )
            loss = self._loss(batch)
            (loss * scale).backward()
            local_loss += loss.detach()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        loss_sum = distributed.sum_over_ranks([local_loss.item()])[0]
        mean = loss_sum / max(tokens, 1)
        good = math.isfinite(mean) and mean <= max_loss and math.isfinite(norm.item())
        result = StepResult(mean, norm.item(), int(tokens), skipped=not good)
        if not result.skipped:
            if self.clip is not None:
                clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    def after_step(self, step: int) -> None:
        self.method.after_step(self.model, self.optimizer, step)

    def evaluate(self, batch: "Batch") -> tuple[Tensor, int]:
        with torch.no_grad():
            return self._loss(batch), int((batch.targets != IGNORE_INDEX).sum())

    def logits(self, tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(tokens_BT.to(self.device))

    def tensors(self) -> dict[str, Tensor]:
        # An evaluation leaves gathered copies in the modules; the optimizer knows the shards.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        if not self.optimizer.state:
            self._allocate_optimizer_state()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def take(self, tensors: Mapping[str, Tensor | FlatShard]) -> None:
        pass  # they are the model's and the optimizer's own

    def _loss(self, batch: "Batch") -> Tensor:
        documents = batch.documents
        return self.model(
            batch.inputs.to(self.device, non_blocking=True),
            batch.targets.to(self.device, non_blocking=True),
            None if documents is None else documents.to(self.device, non_blocking=True),
        )

    def _allocate_optimizer_state(self) -> None:
        """A step of size zero makes the optimizer allocate its state, for a checkpoint to fill."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        zero_state(self.optimizer, self.model.parameters())
