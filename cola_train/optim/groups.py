"""Which parameters an optimizer treats alike."""

from typing import Any

import torch
from torch import nn

from cola_train.optim import OptimOptions

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, options: OptimOptions) -> Groups:
    """The model's trainable parameters, for a torch optimizer: `params` are (name, parameter).

    torch keeps the names as the group's `param_names`, in the order of `params`, whoever replaces
    these by shards or masters. `lr_scale` multiplies a group's learning rate. `shapes`: of
    `params`, in their order, without the zeros with which they are stored (`model.padding`).
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [{"params": trained, "shapes": [own_shape(model, *named) for named in trained]}]


def own_shape(model: nn.Module, name: str, parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape, without the zeros."""
    module, _, own_name = name.rpartition(".")
    paddings = getattr(model.get_submodule(module), "paddings", {})  # of a PaddedModule
    shape: torch.Size = paddings[own_name].shape if own_name in paddings else parameter.shape
    return shape


def is_block_matrix(name: str, ndim: int) -> bool:
    """Whether a parameter of the model is a matrix of a block; see `methods.costs.Weight`."""
    return name.startswith("layers.") and ndim == 2
