"""What a pre-training method changes: the linears and MLPs it builds, its optimizer, what it does
between steps. A new method is one module here, one entry in METHODS, one YAML file, one test.
"""

from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from cola_train.config.schema import Config, OptimConfig
from cola_train.methods.cola.layers import Cola
from cola_train.methods.full.layers import FullRank
from cola_train.model.llama import Layers


class Method(Layers, Protocol):
    """How a method plugs into the model (see `Layers`) and the loop."""

    def optimizer(self, model: nn.Module, config: OptimConfig) -> Optimizer:
        """The optimizer of the (sharded) model's parameters."""
        ...

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """What the method does between steps (merging, resampling, ...); often nothing."""
        ...


METHODS: dict[str, type[FullRank] | type[Cola]] = {"full": FullRank, "cola": Cola}


def build_method(config: Config) -> Method:
    return METHODS[config.method.name](config)
