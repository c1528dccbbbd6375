"""Launches of every kernel with random inputs, and what each must give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cola_kernels.gated import gated_backward_launch, gated_recompute_launch, gated_up_launch
from cola_kernels.gemm import up_add_launch
from cola_kernels.launch import Launch
from cola_kernels.tiles import TYPICAL
from cola_kernels.tools.floors import Shape
from cola_kernels.tools.ptx.rounding import Bounded, exactly, product, silu, silu_slope

# widths are multiples of 16, as the ops pad them; rows are any
SMALL = {
    "one row": Shape(d=16, d_ff=16, r=16, n=1),
    # a tile's K cut short, a last tile of one row, several tiles to a program
    "ragged": Shape(d=272, d_ff=272, r=80, n=257),
    "whole tiles": Shape(d=256, d_ff=256, r=128, n=128),
}
LARGE = {"1b": Shape(d=2048, d_ff=5504, r=512, n=4099)}

Inputs = dict[str, Tensor]
ROWS = ("h", "residual", "dz", "g", "u")  # inputs with a row for each of the output's
# of inputs (some rows of those in ROWS), some columns and GATE_SILU: the outputs
Right = Callable[[Inputs, Tensor, bool], dict[str, Bounded]]


@dataclass(frozen=True)
class Case:
    """A launch, and what must stand in its outputs afterwards.

    Attributes:
        outputs: names of the arguments that it writes, all of the same shape.
    """

    name: str
    launch: Launch
    outputs: tuple[str, ...]
    right: Right
    inputs: Inputs
    gate_silu: bool = False

    def expected(self, rows: Tensor, columns: Tensor) -> dict[str, Bounded]:
        """Of each output these rows and columns."""
        inputs = {name: x[rows] if name in ROWS else x for name, x in self.inputs.items()}
        found = self.right(inputs, columns, self.gate_silu)
        dtype = self.inputs["h"].dtype
        return {name: found[name].rounded(dtype) for name in self.outputs}


def up_add(i: Inputs, columns: Tensor, gate_silu: bool) -> dict[str, Bounded]:
    y = product(i["h"], i["weight"][columns].t()) + exactly(i["residual"][:, columns])
    return {"y_ptr": y}


def gated_up(i: Inputs, columns: Tensor, gate_silu: bool) -> dict[str, Bounded]:
    r = i["gate"].shape[1]
    g = product(i["h"][:, :r], i["gate"][columns].t())
    u = product(i["h"][:, r:], i["up"][columns].t())
    return {"g_ptr": g, "u_ptr": u, "p_ptr": (silu(g) if gate_silu else g) * u}


def gradients(dp: Bounded, g: Bounded, u: Bounded, gate_silu: bool) -> dict[str, Bounded]:
    dg = dp * u * silu_slope(g) if gate_silu else dp * u
    return {"dg_ptr": dg, "du_ptr": dp * (silu(g) if gate_silu else g)}


def gated_backward(i: Inputs, columns: Tensor, gate_silu: bool) -> dict[str, Bounded]:
    dp = product(i["dz"], i["down"][:, columns])
    return gradients(dp, exactly(i["g"][:, columns]), exactly(i["u"][:, columns]), gate_silu)


def gated_recompute(i: Inputs, columns: Tensor, gate_silu: bool) -> dict[str, Bounded]:
    forward = gated_up(i, columns, gate_silu)
    dp = product(i["dz"], i["down"][:, columns])
    g, u = (forward[name].rounded(i["h"].dtype) for name in ("g_ptr", "u_ptr"))
    return {"p_ptr": forward["p_ptr"], **gradients(dp, g, u, gate_silu)}


def cases(
    shape: Shape, dtype: torch.dtype, arch: str, programs: int | None = None
) -> Iterator[Case]:
    """Every kernel in every mode, on CPU tensors; outputs are full of NaN before.

    programs: how many walk over the tiles; without it each has a tile of its own.
    """
    for case in launches(shape, dtype, arch):
        output = case.launch.arguments[case.outputs[0]]
        assert isinstance(output, Tensor)
        tiles = case.launch.config.tiles(*output.shape)
        launch = replace(case.launch, grid=(min(tiles, programs or tiles),))
        yield replace(case, launch=launch)


def launches(shape: Shape, dtype: torch.dtype, arch: str) -> Iterator[Case]:
    """As a model makes them."""
    random = torch.Generator().manual_seed(0)
    target = TYPICAL[arch]
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r

    def new(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(rows, columns, generator=random) * scale).to(dtype)

    def out(columns: int) -> Tensor:
        return torch.full((n, columns), float("nan"), dtype=dtype)

    h, weight, residual = new(n, r), new(d, r, r**-0.5), new(n, d)
    inputs: Inputs = {"h": h, "weight": weight, "residual": residual}
    launch = up_add_launch(h, weight, residual, out(d), target)
    yield Case("up_add", launch, ("y_ptr",), up_add, inputs)

    h, dz = new(n, 2 * r), new(n, r)
    gate, up, down = (new(*size, r**-0.5) for size in ((d_ff, r), (d_ff, r), (r, d_ff)))
    g, u = new(n, d_ff), new(n, d_ff)
    inputs = {"h": h, "gate": gate, "up": up, "down": down, "dz": dz, "g": g, "u": u}
    for gate_silu in (False, True):
        suffix = ", silu" if gate_silu else ""
        outputs: tuple[str, ...]
        for keep in (False, True):
            p, *kept = (out(d_ff) for _ in range(3 if keep else 1))
            launch = gated_up_launch(h, gate, up, p, tuple(kept), gate_silu, target)
            outputs = ("p_ptr", "g_ptr", "u_ptr")[: 3 if keep else 1]
            name = f"gated_up{', kept' if keep else ''}{suffix}"
            yield Case(name, launch, outputs, gated_up, inputs, gate_silu)
        dg, du = out(d_ff), out(d_ff)
        launch = gated_backward_launch(dz, down, g, u, dg, du, gate_silu, target)
        name, outputs = f"gated_backward{suffix}", ("dg_ptr", "du_ptr")
        yield Case(name, launch, outputs, gated_backward, inputs, gate_silu)
        dg, du, p = (out(d_ff) for _ in range(3))
        launch = gated_recompute_launch(dz, down, h, gate, up, dg, du, p, gate_silu, target)
        name, outputs = f"gated_recompute{suffix}", ("dg_ptr", "du_ptr", "p_ptr")
        yield Case(name, launch, outputs, gated_recompute, inputs, gate_silu)
