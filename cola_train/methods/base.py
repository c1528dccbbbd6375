"""A method as the model, the engine and the loop see it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol

import cola_kernels
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cola_train.config.schema import Config
from cola_train.hardware import kernels_on
from cola_train.model.linear import Ops
from cola_train.optim import OptimOptions
from cola_train.optim.groups import parameter_groups


def implementation(name: str) -> Any:
    """What "module:attribute" names: loaded when asked for."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


class Weights(Protocol):
    """The fp32 masters of a model's parameters, by name, whichever engine holds them.

    What is assigned is what the next step computes with. Collective: every process calls.
    """

    def names(self) -> list[str]:
        """Of all parameters, frozen ones too."""
        ...

    def full(self, name: str) -> Tensor:
        """The whole parameter, fp32, on every process."""
        ...

    def sample(self, name: str, most: int) -> Tensor:
        """A copy of at most so many elements of this process's part of the parameter, fp32, flat:
        spread evenly, the same ones at each call. None, if others have all of it."""
        ...

    def assign(self, name: str, whole: Tensor) -> None:
        """Give the parameter the values of `whole`, which are the same on every process."""
        ...

    def change_state(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        """Give each tensor of the parameter's optimizer state that has its shape what `change`
        makes of the whole one, which is the same on every process. There may be none yet."""
        ...


class Method(ABC):
    """Builds the linears and MLPs of a block (see `model.llama.Layers`), and the optimizer.

    kept_ops: of each recompute policy that the method brings: names of the ops whose outputs stay.
    """

    kept_ops: ClassVar[Mapping[str, frozenset[str]]] = {}

    def __init__(self, config: Config, device: torch.device) -> None:
        precision = config.train.precision
        # a policy of the method's own says what stays; without one everything may
        self.keep_wide = config.recompute.name not in self.kept_ops
        self.kernels = kernels_on(device, config.kernels, precision)
        self.ops: Ops = cola_kernels.select(
            self.kernels, device, self.keep_wide, fp8=precision == "fp8"
        )

    def warm_up(self, config: Config, device: torch.device) -> None:  # noqa: B027
        """Compile ahead what the first step would launch; nothing, if it launches only torch's
        kernels."""

    @abstractmethod
    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        """Linears of one input, by name; see `model.llama.Layers`."""

    @abstractmethod
    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        """The MLP of a block; see there."""

    def optimizer(self, model: nn.Module, options: OptimOptions) -> Optimizer:
        """The optimizer of the (sharded) model's trainable parameters.

        One whose state cannot be made by a step on zero gradients has `allocate()`, which makes it
        as it is before the first step. State is tensors: of the weight's shape, of another one (a
        DTensor where the weight is one), or a counter without dimensions.
        """
        groups = parameter_groups(model, options)
        optimizer: Optimizer = implementation(options.implementation)(groups, options)
        return optimizer

    def metrics(self) -> dict[str, Tensor]:
        """Numbers worth logging of the forward passes of this step, by name, one for each process
        (scalars on the device, the same names everywhere): their mean is logged."""
        return {}

    def after_step(self, weights: Weights, step: int) -> dict[str, float]:
        """What the method does after step 1, 2, ... (merging, resampling, ...), be it a skipped
        one; often nothing.

        Returns:
            Numbers worth logging of it, by name, the same on every process: the step's line has
            them, whatever `train.log_every` is.
        """
        return {}

    def fold(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights for `config.method.folded`, of these, with which its model computes the same.

        Args:
            weights: all that a checkpoint has of the model, or of some of its blocks, by its names,
                in its shapes.
        """
        return dict(weights)


def build_method(config: Config, device: torch.device) -> Method:
    method: Method = implementation(config.method.implementation)(config, device)
    return method
