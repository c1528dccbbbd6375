"""RMSNorm.

Shapes: any leading axes, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.model.init import Fill, constant


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))
        self.normalise = rms_norm  # model/cpu.py has another

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.weight, self.eps)

    def init(self, name: str) -> Fill:
        return constant(1.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """torch's own: fused on GPUs, and by torch.compile."""
    return F.rms_norm(x, weight.shape, weight, eps)
