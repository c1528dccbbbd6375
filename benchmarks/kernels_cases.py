"""What `kernels` times: every use of a fused op in a block of the model, forward and backward.

Shapes: n rows, d model width, r bottleneck width, F = d_ff. The activation is CoLA's at 1b and 7b:
SiLU on the bottleneck, none on gate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from cola_kernels import fused, fused_wide, reference
from cola_kernels.tools.floors import Cost, Shape, table
from cola_kernels.tools.timing import Subject
from torch import Tensor
from torch.nn.functional import pad

Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """A use of an op.

    name: as in `floors.table`.
    op: the function of a library's tensors; the library is `reference` or `fused`.
    gradients: the op's backward pass is meant, through autograd; else the call itself.
    """

    name: str
    op: Callable[[ModuleType], Function]
    inputs: list[Tensor]
    cost: Cost
    gradients: bool

    def subject(self, function: Function) -> Subject:
        """`function` on the inputs, or its backward pass, to be timed."""
        if not self.gradients:
            return lambda: lambda: function(*self.inputs)
        # the gradient of an output lies in memory as the output does
        generator = torch.Generator(self.inputs[0].device).manual_seed(1)
        outputs = function(*self.inputs)
        dys = [
            torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device=y.device).copy_(
                torch.randn(y.shape, generator=generator, device=y.device)
            )
            for y in outputs
        ]
        del outputs

        def prepare() -> Callable[[], Sequence[Tensor]]:
            outputs = function(*self.inputs)
            return lambda: torch.autograd.grad(outputs, self.inputs, dys)

        return prepare


def cases(shape: Shape, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Every op of `floors.table(shape)`, on random tensors.

    The d_ff-wide inputs have aligned rows, as the fused ops write them: for the reference too,
    whom it helps where d_ff is odd.
    """
    costs = table(shape)
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        padded = torch.empty(rows, -(-columns // 16) * 16, dtype=dtype, device=device)
        return padded[:, :columns].normal_(generator=generator)

    def weight(d_out: int, d_in: int) -> Tensor:
        return normal(d_out, d_in).mul_(d_in**-0.5).contiguous()

    def plain(name: str, op: Callable[[ModuleType], Function], *inputs: Tensor) -> Case:
        return Case(name, op, list(inputs), costs[name], gradients=False)

    def both(name: str, op: Callable[[ModuleType], Function], *inputs: Tensor) -> Iterator[Case]:
        yield plain(name, op, *inputs)
        leaves = [x.detach().requires_grad_() for x in inputs]
        name = f"{name}, gradients"
        yield Case(name, op, leaves, costs[name], gradients=True)

    yield from both("up_add", up_add, normal(n, r), weight(d, r), normal(n, d))
    z, gate, up, down = normal(n, 2 * r), weight(d_ff, r), weight(d_ff, r), weight(r, d_ff)
    yield from both("gated_down", gated_down, z, gate, up, down)
    yield from both("gated_down, keep", gated_down_wide, z, gate, up, down)
    kept = [normal(n, d_ff), normal(n, d_ff)]
    yield plain("gated_backward", gated_backward, normal(n, r), down, *kept)
    yield plain("gated_recompute", gated_recompute, normal(n, r), down, z, gate, up)


def up_add(library: ModuleType) -> Function:
    return lambda z, weight, residual: library.up(z, [weight], residual)


def gated_down(library: ModuleType) -> Function:
    return lambda z, gate, up, down: (library.gated_down(z, gate, up, down),)


def gated_down_wide(library: ModuleType) -> Function:
    return gated_down(fused_wide if library is fused else library)


def gated_backward(library: ModuleType) -> Function:
    if library is reference:
        return reference.gated_backward

    def function(dz_d: Tensor, down: Tensor, g: Tensor, u: Tensor) -> Sequence[Tensor]:
        more = (0, -g.shape[1] % 16)  # the op's own tensors have padded rows
        found = OPS.gated_backward(dz_d, down, pad(g, more), pad(u, more), False)
        return [x[:, : g.shape[1]] for x in found]

    return function


def gated_recompute(library: ModuleType) -> Function:
    if library is reference:
        return reference.gated_recompute

    def function(*inputs: Tensor) -> Sequence[Tensor]:
        _, down, *_ = inputs
        return [x[:, : down.shape[1]] for x in OPS.gated_recompute(*inputs, False)]

    return function


OPS = torch.ops.cola_kernels
LIBRARIES = {"reference": reference, "fused": fused}
