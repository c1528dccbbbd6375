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


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, (..., d_in) -> (..., d_out), of a packed W."""
    y: Tensor = _linear(x, weight, None, "none", [], "")
    return y


_linear = torch.ops.mkldnn._linear_pointwise.default._op  # without Python's part of the call


class PackedOps:
    """`model.linear.Ops` of packed weights."""

    def linear(
        self, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        if residual is not None:
            (weight,) = weights
            return (linear(x, weight).add_(residual),)
        return tuple(linear(x, weight) for weight in weights)

    def gated(self, g: Tensor, u: Tensor, gate_silu: bool) -> Tensor:
        return F.silu(g).mul_(u) if gate_silu else g * u

    def down(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        zs = self.linear(x, weights, None)
        return zs[0] if len(zs) == 1 else torch.cat(zs, dim=-1)

    def up(
        self, z: Tensor, weights: Sequence[Tensor], residual: Tensor | None, activation: bool
    ) -> tuple[Tensor, ...]:
        h = F.silu(z) if activation else z
        if len(weights) == 1:
            return self.linear(h, weights, residual)
        return tuple(map(linear, h.chunk(len(weights), dim=-1), weights))

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor:
        g, u = self.up(z, [gate, up], None, activation)
        return linear(self.gated(g, u, gate_silu), down)
