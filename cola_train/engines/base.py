"""The step that all engines share, and what the loop sees of them.

An engine shards a (meta) model, gives it weights and pairs it with its optimizer; it adds two
calls to the step, `backward` and `update`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.padding import UnpaddedWeights, without_padding
from cola_train.methods.base import Method, Weights, implementation
from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX
from cola_train.model.padding import Padding, paddings


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every process."""

    loss: float  # mean over the global batch's predicted tokens, nats
    grad_norm: float  # global, before clipping
    tokens: int  # predicted tokens of the global batch
    # not finite, or a spike: weights and optimizer state are untouched, unless updates are made in
    # the backward pass
    skipped: bool
    stop: bool = False  # some process has asked for the end of the run
    metrics: dict[str, float] = field(default_factory=dict)  # of the method, means over processes


class Engine(ABC):
    """Owns the sharded model and its optimizer. All processes make each call together.

    model: the modules; module: what is called for a forward pass.
    """

    model: Llama
    module: nn.Module
    optimizer: Optimizer
    method: Method
    device: torch.device
    watches_gradients = False  # whether `gradient_norm` will be asked after the next step

    @abstractmethod
    def __init__(self, config: Config, model: Llama, method: Method, device: torch.device) -> None:
        """Shard the (meta) model, give it weights, and pair it with its optimizer."""

    @abstractmethod
    def backward(self, loss: Tensor, accept: Tensor | None) -> None:
        """Add a micro-batch's gradients, whose mean over processes is the step's.

        accept: with the last micro-batch: whether the step's loss may be learnt from (bool, on the
            device).
        """

    @abstractmethod
    def update(self, figures: Tensor) -> Tensor:
        """Clip and update, unless the step is not accepted or its gradients are not finite.

        figures: float64, on the device; the first is `accept`.

        Returns:
            `figures`, then the gradient norm before clipping, and 1 if it has updated.
        """

    @abstractmethod
    def gradient_norm(self, names: Sequence[str]) -> Tensor:
        """The norm of the last step's gradient of these trained parameters together, before
        clipping; an fp32 scalar on the device. For a step with `watches_gradients`."""

    @abstractmethod
    def stored_weights(self) -> Weights:
        """The fp32 masters, in the shapes that the model's parameters have."""

    @abstractmethod
    def stored_state(self) -> Mapping[str, Tensor | FlatShard]:
        """What `state_dict` returns, in the shapes that the model's parameters have."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        """Go on from a `state_dict()` that a checkpoint has filled."""

    @abstractmethod
    def close(self) -> None:
        """Undo what would outlive the engine in this process."""

    @cached_property
    def paddings(self) -> dict[str, Padding]:
        """Of the parameters that are stored padded, by name."""
        return paddings(self.model)

    def weights(self) -> Weights:
        """The fp32 masters, for the method to work on between steps; without padding."""
        return UnpaddedWeights(self.stored_weights(), self.paddings)

    def state_dict(self) -> dict[str, Tensor | FlatShard]:
        """Model and optimizer state by name, for a checkpoint to save or to fill in place.

        Named and shaped the same under every engine: `model.<parameter>` the fp32 weight,
        `model.<buffer>` a persistent buffer, `optimizer.<parameter>.<key>` the state of what is
        trained; without padding. The parts of each process as they lie, no copies where that can
        be: training stands still meanwhile.
        """
        return without_padding(self.stored_state(), self.paddings)

    def train_step(
        self,
        batches: Sequence[Batch],
        lr: float,
        max_loss: float = math.inf,
        stop: bool = False,
    ) -> StepResult:
        """One optimizer step over this process's micro-batches of the global batch; skipped if
        loss or gradient are not finite (a mean over no token is not), or the loss is above
        `max_loss`.

        stop: this process asks for the end of the run; the result says whether any does.

        The one transfer to the host is the result's.
        """
        batches = [batch.to(self.device) for batch in batches]
        limits = torch.tensor([max_loss, float(stop)], dtype=torch.float64)
        figures, names = self.device_step(batches, lr, limits.to(self.device, non_blocking=True))
        _, loss, tokens, stops, *metrics, norm, updated = figures.tolist()
        processes = distributed.world_size()
        return StepResult(
            loss=loss,
            grad_norm=norm,
            tokens=int(tokens),
            skipped=not updated,
            stop=stops > 0,
            metrics={name: total / processes for name, total in zip(names, metrics, strict=True)},
        )

    def device_step(
        self, batches: Sequence[Batch], lr: float | Tensor, limits: Tensor
    ) -> tuple[Tensor, list[str]]:
        """What a step does on the device, where its batches are and what it counts and decides
        stays.

        limits: the largest loss to learn from, and 1 if this process asks for the end; float64.

        Returns:
            What `update` does, float64 on the device: accepted, mean loss, tokens, how many ask
            for the end, sums of the method's metrics, norm, updated; and the metrics' names.
        """
        predicted = [(batch.targets != IGNORE_INDEX).sum() for batch in batches]
        tokens = all_reduce(torch.stack(predicted).sum().double())
        # Engines average gradients over processes; the loss is a mean over the global batch.
        scale = (distributed.world_size() / tokens.clamp(min=1)).float()
        loss_sum = torch.zeros((), device=self.device)
        self.set_learning_rate(lr)  # before the first gradient, which may be an update's
        max_loss, asked = limits.unbind()
        for i, batch in enumerate(batches):
            accept: Tensor | None = None
            loss = self.loss(batch)
            loss_sum += loss.detach()
            if i == len(batches) - 1:
                sums, names = self._sums(loss_sum, asked, scale)
                mean = sums[0] / tokens
                accept = mean.isfinite() & (mean <= max_loss)
            self.backward(loss * scale, accept)
        assert accept is not None, "a step needs a batch"
        figures = torch.stack([accept.double(), mean, tokens, *sums[1:]])
        return self.update(figures), names

    def _sums(self, loss_sum: Tensor, asked: Tensor, scale: Tensor) -> tuple[Tensor, list[str]]:
        """Over processes: the loss, who asks for the end, the method's metrics and the model's,
        which `scale` makes means over tokens once they are divided by processes; their names."""
        of_model = {name: total * scale for name, total in self.model.sums().items()}
        metrics = self.method.metrics() | of_model
        names = sorted(metrics)
        values = [loss_sum.double(), asked, *(metrics[name].double() for name in names)]
        return all_reduce(torch.stack(values)), names

    def set_learning_rate(self, lr: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def after_step(self, step: int) -> dict[str, float]:
        """What the method does between steps; numbers worth logging of it."""
        return self.method.after_step(self.weights(), step)

    def eval_model(self) -> nn.Module:
        """What maps tokens (B, T) on this device to logits (B, T, V), under torch.no_grad(). All
        processes call it together."""
        return self.module

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed loss (fp32 scalar, nats) and number of predicted tokens of a local batch."""
        return self.loss(batch.to(self.device)), int((batch.targets != IGNORE_INDEX).sum())

    def loss(self, batch: Batch) -> Tensor:
        """Summed over a batch on the device."""
        loss: Tensor = self.module(batch.inputs, batch.targets, batch.documents)
        return loss


def all_reduce(values: Tensor) -> Tensor:
    """Element-wise sums over processes, on the device, in place."""
    if distributed.world_size() > 1:
        dist.all_reduce(values)
    return values


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are trained, by name; frozen ones have no gradients and no state."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a checkpoint holds, by name; every process holds them whole."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def spread(flat: Tensor, most: int) -> Tensor:
    """A copy of at most so many elements of (n,), evenly spread; an odd number of elements apart,
    so that they are not of one column of a matrix."""
    return flat[:: -(-len(flat) // most) | 1].detach().clone()


def allocate_state(optimizer: Any, parameters: Sequence[Tensor]) -> None:
    """Make the optimizer allocate its state of these, all that it has, for a checkpoint to fill.

    If it cannot do so itself (`Method.optimizer`), by a step of size zero, of which nothing stays.
    """
    if hasattr(optimizer, "allocate"):
        optimizer.allocate()
        return
    gradients = [parameter.grad for parameter in parameters]  # an engine's buffers, maybe
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor):
                value.zero_()


def build_engine(config: Config, model: Llama, method: Method, device: torch.device) -> Engine:
    """Shard the (meta) model, give it weights, and pair it with its optimizer."""
    engine: Engine = implementation(config.engine.implementation)(config, model, method, device)
    return engine
