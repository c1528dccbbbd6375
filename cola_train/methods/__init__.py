"""What a pre-training method changes: the linears it builds, its optimizer, what it does between
steps. A new method is one module here, one entry in METHODS, one YAML file, one test.
"""

from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from cola_train.config import Config, OptimConfig
from cola_train.methods.cola import Cola
from cola_train.methods.full import FullRank


class Method(Protocol):
    """How a method plugs into the model and the loop."""

    gate_silu: bool  # whether SwiGLU's SiLU stays on the gate

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        """The module for the projections named in `d_outs` (name to width) of one input.

        Its forward maps (..., d_in) to a tuple of (..., d_out), in order.
        """
        ...

    def optimizer(self, model: nn.Module, config: OptimConfig) -> Optimizer:
        """The optimizer of the (sharded) model's parameters."""
        ...

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """What the method does between steps (merging, resampling, ...); often nothing."""
        ...


METHODS: dict[str, type[FullRank] | type[Cola]] = {"full": FullRank, "cola": Cola}


def build_method(config: Config) -> Method:
    return METHODS[config.method.name](config)
