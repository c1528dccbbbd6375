"""What `decode_kernels` times: the layers of a block, by the decode kernels and by torch's own.

CoLA at 350m, 1b and 7b: SiLU on the bottleneck, none on gate. Shapes: `floors.Shape`.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from cola_kernels import reference
from cola_kernels.tools.floors import Shape
from torch import Tensor

EPS = 1e-6


class Block:
    """Random weights of a block's layers, or of the named one. Those that share their input are
    joined: torch multiplies them at once, the kernels take their parts."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, layer: str = "block") -> None:
        def new(rows: int, columns: int) -> Tensor:
            made = torch.empty(rows, columns, dtype=dtype, device=device)
            return made.normal_(std=columns**-0.5)

        d, d_ff, r = shape.d, shape.d_ff, shape.r
        every = layer == "block"
        self.norm = torch.rand(d, device=device).add_(0.5).to(dtype)
        if every or layer == "qkv":
            self.qkv_a, self.qkv_b = new(3 * r, d), new(3 * d, r)
        if every or layer == "o":
            self.o_a, self.o_b = new(r, d), new(d, r)
        if every or layer == "mlp":
            self.mlp_a, self.mlp_b = new(2 * r, d), new(2 * d_ff, r)
            self.down_a, self.down_b = new(r, d_ff), new(d, r)


class Torch:
    """The same layers in torch, on joined weights."""

    def encode(
        self,
        x: Tensor,
        a: Sequence[Tensor],
        b: Sequence[Tensor],
        residual: Tensor | None = None,
        norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> list[Tensor]:
        x = x if norm is None else F.rms_norm(x, norm.shape, norm, eps)
        h = F.silu(F.linear(x, joined(a))).chunk(len(b), dim=-1)
        y = [F.linear(h_i, b_i) for h_i, b_i in zip(h, b, strict=True)]
        return y if residual is None else [y[0] + residual]

    def mlp(
        self,
        x: Tensor,
        a: Sequence[Tensor],
        b: Sequence[Tensor],
        down: Sequence[Tensor],
        residual: Tensor,
        norm: Tensor,
        eps: float,
    ) -> Tensor:
        x = F.rms_norm(x, norm.shape, norm, eps)
        h_g, h_u = F.silu(F.linear(x, joined(a))).chunk(2, dim=-1)
        p = F.linear(h_g, b[0]) * F.linear(h_u, b[1])
        return residual + F.linear(F.silu(F.linear(p, down[0])), down[1])


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Consecutive parts of a tensor as that tensor."""
    rows = sum(len(weight) for weight in weights)
    return weights[0].as_strided((rows, weights[0].shape[1]), weights[0].stride())


def qkv(ops: Any, of: Block, x: Tensor) -> Tensor:
    q: Tensor = ops.encode(x, of.qkv_a.chunk(3), of.qkv_b.chunk(3), norm=of.norm, eps=EPS)[0]
    return q


def o(ops: Any, of: Block, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y: Tensor = ops.encode(x, [of.o_a], [of.o_b], x if residual is None else residual)[0]
    return y


def mlp(ops: Any, of: Block, x: Tensor) -> Tensor:
    down = [of.down_a, of.down_b]
    y: Tensor = ops.mlp(x, of.mlp_a.chunk(2), of.mlp_b.chunk(2), down, x, of.norm, EPS)
    return y


def block(ops: Any, of: Block, x: Tensor) -> Tensor:
    """q in place of attention's output: what is between is not timed."""
    return mlp(ops, of, o(ops, of, qkv(ops, of, x), x))


LAYERS: dict[str, Callable[[Any, Block, Tensor], Tensor]] = {
    "qkv": qkv, "o": o, "mlp": mlp, "block": block,
}  # fmt: skip


def rounding(dtype: torch.dtype, terms: int) -> float:
    """Of a result, and of a sum of so many terms in fp32, one after the other: each error is 0.3
    eps of what is summed so far, 0.2 sqrt(terms) eps in all. Torch may sum in another order."""
    return max(torch.finfo(dtype).eps, 0.25 * terms**0.5 * torch.finfo(torch.float32).eps)


def largest_error(ops: Any, shape: Shape, dtype: torch.dtype, device: str) -> float:
    """Of the three layers, against fp64, over what is allowed: twice that of plain torch in the
    same dtype, and `rounding`. inf for what is not finite."""
    torch.manual_seed(0)
    weights = Block(shape, dtype, device)
    exact = copy(weights)
    vars(exact).update({name: of.double() for name, of in vars(weights).items()})
    x = torch.randn(shape.n, shape.d, device=device).to(dtype)
    largest = 0.0
    with torch.no_grad():
        for layer in (qkv, o, mlp):
            truth = layer(reference, exact, x.double())
            plain, ours = layer(reference, weights, x), layer(ops, weights, x)
            allowed = 2 * (plain - truth).norm() + rounding(dtype, shape.d_ff) * truth.norm()
            error = float((ours - truth).norm() / allowed)
            largest = max(largest, error if error < float("inf") else float("inf"))
    return largest
