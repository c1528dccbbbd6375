"""A method as the model, the engine and the loop see it."""

from importlib import import_module
from typing import Any

import cola_kernels
import torch
from torch import nn
from torch.optim import Optimizer

from cola_train.config.schema import Config
from cola_train.optim import OptimOptions


def implementation(name: str) -> Any:
    """What "module:attribute" names: loaded when asked for."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


class Method:
    """Builds the linears and MLPs of a block (see `model.llama.Layers`), and the optimizer."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.ops = cola_kernels.select(config.kernels, device)

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        raise NotImplementedError

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        raise NotImplementedError

    def optimizer(self, model: nn.Module, options: OptimOptions) -> Optimizer:
        """The optimizer of the (sharded) model's trainable parameters."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer: Optimizer = implementation(options.implementation)(trainable, options)
        return optimizer

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """What the method does between steps (merging, resampling, ...); often nothing."""


def build_method(config: Config, device: torch.device) -> Method:
    method: Method = implementation(config.method.implementation)(config, device)
    return method
