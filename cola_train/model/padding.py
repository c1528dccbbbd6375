"""Weights that are stored with zeros beyond their own shape, for widths that the hardware likes.

Only d_ff and rank are padded (config/widths.py). There zeros are a fixed point of training: what is
computed from a padded row or column is zero, so its gradient is, and so is its update.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.config.widths import stored


@dataclass(frozen=True)
class Padding:
    """A weight's shape, and that of the tensor which holds it with zeros at each axis' end."""

    shape: torch.Size
    stored: torch.Size

    def of_state(self, stored: torch.Size) -> "Padding | None":
        """Of a tensor of that shape, which may have some of the weight's axes: those as long as a
        padded axis are one (a rank is shorter than a d_ff). None: it has no such axis."""
        shape = list(stored)
        for dim, (own, padded) in enumerate(zip(self.shape, self.stored, strict=True)):
            if own != padded and len(stored) == len(self.stored) and stored[dim] == padded:
                shape[dim] = own
        return None if tuple(shape) == tuple(stored) else Padding(torch.Size(shape), stored)

    def cut(self, tensor: Tensor) -> Tensor:
        """Without the zeros, (shape): a view."""
        for dim, size in enumerate(self.shape):
            tensor = tensor.narrow(dim, 0, size)
        return tensor

    def pad(self, whole: Tensor) -> Tensor:
        """With the zeros, (stored): a copy."""
        missing = [s - n for n, s in zip(self.shape, self.stored, strict=True)]
        return F.pad(whole, [side for size in reversed(missing) for side in (0, size)])


class PaddedModule(nn.Module):
    """A module of which some parameters are padded.

    paddings: of those, by the parameter's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paddings: dict[str, Padding] = {}

    def add_weight(self, name: str, *shape: int, trainable: bool = True) -> nn.Parameter:
        """Register an empty parameter of that shape, in which a `Width` is stored with zeros."""
        padding = Padding(torch.Size(map(int, shape)), torch.Size(map(stored, shape)))
        weight = nn.Parameter(torch.empty(padding.stored), requires_grad=trainable)
        self.register_parameter(name, weight)
        if padding.shape != padding.stored:
            self.paddings[name] = padding
        return weight


def paddings(model: nn.Module) -> dict[str, Padding]:
    """Of all padded parameters of a model, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: padding
        for prefix, module in model.named_modules()
        if isinstance(module, PaddedModule)
        for name, padding in module.paddings.items()
    }


def remove_padding(model: nn.Module) -> None:
    """Leave the parameters with their own shapes, in place: the same function, unaligned."""
    for module in model.modules():
        if isinstance(module, PaddedModule):
            for name, padding in module.paddings.items():
                padded = module.get_parameter(name)
                own = padding.cut(padded.detach()).clone()
                setattr(module, name, nn.Parameter(own, padded.requires_grad))
            module.paddings = {}
