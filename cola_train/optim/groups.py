"""Which parameters an optimizer treats alike."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from cola_train.errors import UserError
from cola_train.optim import OptimOptions

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, options: OptimOptions) -> Groups:
    """The model's trainable parameters, for a torch optimizer: `params` are (name, parameter).

    Those of each pattern of `options.groups` are a group with its own `weight_decay`, `lr_scale`
    or both; the others come first, in a group without. torch keeps the names as the group's
    `param_names`, in the order of `params`, whoever replaces these by shards or masters. `lr_scale`
    multiplies a group's learning rate. `shapes`: of `params`, in their order, without the zeros
    with which they are stored (`model.padding`).

    Raises:
        UserError: as `matched` does.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pattern_of = matched(trained, options.groups)
    groups: Groups = []
    for pattern in (None, *options.groups):
        params = [(name, p) for name, p in trained.items() if pattern_of.get(name) == pattern]
        own: dict[str, Any] = {}
        if pattern is not None:
            group = options.groups[pattern]
            if group.weight_decay is not None:
                own["weight_decay"] = group.weight_decay
            if group.lr is not None:
                own["lr_scale"] = group.lr / options.lr
            if group.lr_ratio is not None:
                own["lr_scale"] = group.lr_ratio
        if params:
            shapes = [own_shape(model, *named) for named in params]
            groups.append({"params": params, "shapes": shapes, **own})
    return groups


def own_shape(model: nn.Module, name: str, parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape, without the zeros."""
    module, _, own_name = name.rpartition(".")
    paddings = getattr(model.get_submodule(module), "paddings", {})  # of a PaddedModule
    shape: torch.Size = paddings[own_name].shape if own_name in paddings else parameter.shape
    return shape


def matched(names: Iterable[str], patterns: Mapping[str, Any]) -> dict[str, str]:
    """Name -> the first pattern that it matches, for those that match any.

    Raises:
        UserError: a pattern is the first one of no name.
    """
    names = list(names)
    found = {
        name: first
        for name in names
        if (first := next((p for p in patterns if fnmatchcase(name, p)), None)) is not None
    }
    problems = []
    for pattern in patterns.keys() - found.values():
        taken = {found[name] for name in names if fnmatchcase(name, pattern)}
        if taken:
            why = f"what it matches is matched by {' and '.join(sorted(taken))} before it"
        else:
            (near,) = get_close_matches(pattern.replace("*", ""), names, n=1, cutoff=0)
            why = f"matches no trained parameter; one is `{near}`"
        problems.append(f"optim.groups: `{pattern}` {why}")
    if problems:
        raise UserError(*sorted(problems))
    return found


def is_block_matrix(name: str, ndim: int) -> bool:
    """Whether a parameter of the model is a matrix of a block; see `methods.costs.Weight`."""
    return name.startswith("layers.") and ndim == 2
