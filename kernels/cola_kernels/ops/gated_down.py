"""`gated_down`: z_d = (f(s(z_g) B_g^T) * (s(z_u) B_u^T)) A^T, the middle of a gated MLP.

Shapes: n rows (any leading axes), r bottleneck width (z is (..., 2 r), gate's half first),
F = d_ff, r_d the width of z_d. Forward: one kernel writes p, and a plain GEMM reads it. There are
two designs of the backward pass; docs/kernels.md has the count of each.
    `gated_down` keeps z and the weights. One kernel computes the tiles of g, u and dp again.
    `gated_down_wide` keeps g, u and p too. The epilogue of dp's GEMM makes dg and du of them.
What is left of either is GEMMs. Tensors of width F that only these ops see have columns up to the
next multiple of 16, zeros there.
"""

from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_kernels import composed
from cola_kernels.gated import gated_backward_launch, gated_recompute_launch, gated_up_launch
from cola_kernels.launch import padded, rounded
from cola_kernels.ops.up import gradients
from cola_kernels.register import below_autograd, product_flops, register
from cola_kernels.support import Checked, check, check_matrices, check_rows, signature, target


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.gated_down`: (..., 2 r), two (F, r), (r_d, F) -> (..., r_d); keeps nothing of
    width F. Of two ranks it is `composed`'s.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take.
    """
    if of_two_ranks(gate, up):
        return composed.gated_down(z, gate, up, down, activation, gate_silu)
    z_d: Tensor = torch.ops.cola_kernels.gated_down(z, gate, up, down, activation, gate_silu)
    return z_d


def gated_down_wide(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """The same; keeps g, u and p for the backward pass."""
    if of_two_ranks(gate, up):
        return composed.gated_down(z, gate, up, down, activation, gate_silu)
    z_d: Tensor = torch.ops.cola_kernels.gated_down_wide(z, gate, up, down, activation, gate_silu)[
        0
    ]
    return z_d


def of_two_ranks(gate: Tensor, up: Tensor) -> bool:
    """Whether gate and up have another rank each, which the kernels do not take."""
    return gate.dim() == up.dim() == 2 and gate.shape[1] != up.shape[1]


@cache
def _check(z: Checked, gate: Checked, up: Checked, down: Checked) -> None:
    check_rows("gated_down", "z", z)
    check_matrices("gated_down", {"gate": gate, "up": up, "down": down})
    d_ff, r = gate.shape
    check(
        "gated_down",
        {"z": z, "gate": gate, "up": up, "down": down},
        {
            "z": (*z.shape[:-1], 2 * r),
            "gate": (d_ff, r),
            "up": (d_ff, r),
            "down": (down.shape[0], d_ff),
        },
    )


def _hidden(z: Tensor, activation: bool) -> Tensor:
    """s(z) as (n, 2 R), each half padded."""
    h = F.silu(z) if activation else z
    r = z.shape[-1] // 2
    if r % 16:
        h = F.pad(h.reshape(-1, 2, r), (0, -r % 16))
    return padded(h.reshape(-1, 2 * rounded(r)))


def _forward(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    activation: bool, gate_silu: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """z_d, p, and with `keep` g and u."""
    _check(signature(z), signature(gate), signature(up), signature(down))
    h = _hidden(z, activation)
    shape = (h.shape[0], rounded(gate.shape[0]))
    p, *kept = (z.new_empty(shape) for _ in range(3 if keep else 1))
    gate, up = padded(gate, rows=True), padded(up, rows=True)
    where = target("gated_down", z.device)
    gated_up_launch(h, gate, up, p, tuple(kept), gate_silu, where).run()
    z_d = z.new_empty(*z.shape[:-1], down.shape[0])
    torch.mm(p, padded(down).t(), out=z_d.view(-1, down.shape[0]))
    return z_d, p, *kept


def _gated_down(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    return _forward(z, gate, up, down, activation, gate_silu, keep=False)[0]


def _gated_down_fake(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    _check.__wrapped__(z, gate, up, down)
    return z.new_empty(*z.shape[:-1], down.shape[0])


def _gated_down_wide(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> tuple[Tensor, ...]:
    return _forward(z, gate, up, down, activation, gate_silu, keep=True)


def _gated_down_wide_fake(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> tuple[Tensor, ...]:
    z_d = _gated_down_fake(z, gate, up, down, activation, gate_silu)
    n, width = prod(z.shape[:-1]), rounded(gate.shape[0])
    return z_d, *(z.new_empty(n, width) for _ in range(3))


def _gated_backward(
    dz_d: Tensor, down: Tensor, g: Tensor, u: Tensor, gate_silu: bool
) -> tuple[Tensor, Tensor]:
    """dg and du (n, F padded), of dz_d (n, r_d)."""
    dg, du = torch.empty_like(g), torch.empty_like(u)
    where = target("gated_backward", g.device)
    dz_d, down = padded(dz_d), padded(down, rows=True)
    gated_backward_launch(dz_d, down, g, u, dg, du, gate_silu, where).run()
    return dg, du


def _gated_recompute(
    dz_d: Tensor, down: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool
) -> tuple[Tensor, ...]:
    """dg, du and p (n, F padded), of dz_d (n, r_d) and h (n, 2 r)."""
    shape = (h.shape[0], rounded(gate.shape[0]))
    dg, du, p = (h.new_empty(shape) for _ in range(3))
    where = target("gated_recompute", h.device)
    gate, up = padded(gate, rows=True), padded(up, rows=True)
    dz_d, down, h = padded(dz_d), padded(down, rows=True), _hidden(h, activation=False)
    gated_recompute_launch(dz_d, down, h, gate, up, dg, du, p, gate_silu, where).run()
    return dg, du, p


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gate: Tensor, up: Tensor, down: Tensor,
        activation: bool, gate_silu: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(z, gate, up, down)
        ctx.activation, ctx.gate_silu = activation, gate_silu
        with below_autograd():
            return GATED_DOWN(z, gate, up, down, activation, gate_silu)

    @staticmethod
    def backward(ctx: Any, dz_d: Tensor) -> tuple[Tensor | None, ...]:
        z, gate, up, down = ctx.saved_tensors
        dz_d = dz_d.flatten(0, -2)
        h = (F.silu(z) if ctx.activation else z).flatten(0, -2)
        dg, du, p = GATED_RECOMPUTE(dz_d, down, h, gate, up, ctx.gate_silu)
        return _gradients(ctx, dz_d, p, dg, du, z, gate, up, down)


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gate: Tensor, up: Tensor, down: Tensor,
        activation: bool, gate_silu: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        with below_autograd():
            z_d, p, g, u = GATED_DOWN_WIDE(z, gate, up, down, activation, gate_silu)
        ctx.save_for_backward(z, gate, up, down, p, g, u)
        ctx.activation, ctx.gate_silu = activation, gate_silu
        ctx.mark_non_differentiable(p, g, u)
        ctx.set_materialize_grads(False)  # zeros as wide as d_ff, for p, g and u
        return z_d, p, g, u

    @staticmethod
    def backward(ctx: Any, dz_d: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        z, gate, up, down, p, g, u = ctx.saved_tensors
        if dz_d is None:
            return (None,) * 6
        dz_d = dz_d.flatten(0, -2)
        dg, du = GATED_BACKWARD(dz_d, down, g, u, ctx.gate_silu)
        return _gradients(ctx, dz_d, p, dg, du, z, gate, up, down)


def _gradients(
    ctx: Any, dz_d: Tensor, p: Tensor, dg: Tensor, du: Tensor,
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Of z, gate, up and down; None for the switches."""
    needs_z, needs_gate, needs_up, needs_down, *_ = ctx.needs_input_grad
    d_ff = gate.shape[0]
    if d_ff % 16:
        p, dg, du = p[:, :d_ff], dg[:, :d_ff], du[:, :d_ff]
    ddown = dz_d.t() @ p if needs_down else None
    # gate's and up's halves of z are two projections of `up`
    flat = z.flatten(0, -2)
    needs = (needs_gate, needs_up)
    dz, dgate, dup = gradients([dg, du], flat, [gate, up], ctx.activation, needs_z, needs)
    return None if dz is None else dz.view(z.shape), dgate, dup, ddown, None, None


GATED_DOWN = register(
    "gated_down(Tensor z, Tensor gate, Tensor up, Tensor down, bool activation, bool gate_silu)"
    " -> Tensor",
    _gated_down,
    fake=_gated_down_fake,
    flops=lambda z, gate, up, down, *_: product_flops(z, [gate, up, down]),
    autograd=lambda *args: _Recompute.apply(*args),
)
GATED_DOWN_WIDE = register(
    "gated_down_wide(Tensor z, Tensor gate, Tensor up, Tensor down, bool activation,"
    " bool gate_silu) -> (Tensor, Tensor, Tensor, Tensor)",
    _gated_down_wide,
    fake=_gated_down_wide_fake,
    flops=lambda z, gate, up, down, *_: product_flops(z, [gate, up, down]),
    autograd=lambda *args: _Wide.apply(*args),
)
GATED_BACKWARD = register(
    "gated_backward(Tensor dz_d, Tensor down, Tensor g, Tensor u, bool gate_silu)"
    " -> (Tensor, Tensor)",
    _gated_backward,
    fake=lambda dz_d, down, g, u, gate_silu: (torch.empty_like(g), torch.empty_like(u)),
    flops=lambda dz_d, down, *_: product_flops(dz_d, [down]),
)
GATED_RECOMPUTE = register(
    "gated_recompute(Tensor dz_d, Tensor down, Tensor h, Tensor gate, Tensor up, bool gate_silu)"
    " -> (Tensor, Tensor, Tensor)",
    _gated_recompute,
    fake=lambda dz_d, down, h, gate, *_: tuple(
        h.new_empty(h.shape[0], rounded(gate.shape[0])) for _ in range(3)
    ),
    flops=lambda dz_d, down, h, gate, up, _: product_flops(h, [down, gate, up]),
)
