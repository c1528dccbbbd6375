"""Ops over weights that oneDNN has laid out for itself: on a CPU, one row of a matrix in torch's
layout is multiplied at half the speed of memory and less.

Forward only. Packed weights are tensors of another layout: they have the shape of what they hold,
and `to_dense` gives it back.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of the dtype faster so."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(weight: Tensor) -> Tensor:
    """(d_out, d_in) in oneDNN's layout: a copy."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


# the op without what Python adds to its call
_linear = torch.ops.mkldnn._linear_pointwise.default._op


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, (..., d_in) -> (..., d_out), of a packed W."""
    y: Tensor = _linear(x, weight, None, "none", [], "")
    return y


class PackedOps:
    """`model.linear.Ops` of packed weights."""

    def linear(
        self, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        if residual is None:
            return tuple([linear(x, weight) for weight in weights])
        (weight,) = weights
        return (linear(x, weight).add_(residual),)

    def gated(self, g: Tensor, u: Tensor, gate_silu: bool) -> Tensor:
        return F.silu(g).mul_(u) if gate_silu else g * u

    def down(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        if len(weights) == 1:
            return linear(x, weights[0])
        return torch.cat([linear(x, weight) for weight in weights], dim=-1)

    def up(
        self, z: Tensor, weights: Sequence[Tensor], residual: Tensor | None, activation: bool
    ) -> tuple[Tensor, ...]:
        h = F.silu(z) if activation else z
        if len(weights) == 1:
            return self.linear(h, weights, residual)
        widths = [weight.shape[1] for weight in weights]
        return tuple(map(linear, h.split(widths, dim=-1), weights))

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor:
        h = F.silu(z) if activation else z
        h_g, h_u = h.split([gate.shape[1], up.shape[1]], dim=-1)
        return linear(self.gated(linear(h_g, gate), linear(h_u, up), gate_silu), down)
