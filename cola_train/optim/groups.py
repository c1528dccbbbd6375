"""Which parameters an optimizer treats alike."""

from typing import Any

from torch import nn

from cola_train.optim import OptimOptions

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, options: OptimOptions) -> Groups:
    """The model's trainable parameters, for a torch optimizer: `params` are (name, parameter).

    torch keeps the names as the group's `param_names`, in the order of `params`, whoever replaces
    these by shards or masters. `lr_scale` multiplies a group's learning rate.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [{"params": trained}]


def is_block_matrix(name: str, ndim: int) -> bool:
    """Whether a parameter of the model is a matrix of a block; see `methods.costs.Weight`."""
    return name.startswith("layers.") and ndim == 2
