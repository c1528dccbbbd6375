"""What `kernels` times: every use of a fused op in a block of the model, forward and backward.

Shapes: n rows, d model width, r bottleneck width, F = d_ff. The activation is CoLA's at 1b and 7b:
SiLU on the bottleneck, none on gate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from cola_kernels import fused, reference
from cola_kernels.gemm import empty_aligned
from cola_kernels.tools.floors import Cost, Shape, table
from cola_kernels.tools.timing import Subject
from torch import Tensor

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
    """Every case of `floors.table(shape)`, on random tensors.

    The d_ff-wide inputs have aligned rows, as the fused ops write them: for the reference too,
    whom it helps where d_ff is odd.
    """
    costs = table(shape)
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r
    generator = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        like = torch.empty(0, dtype=dtype, device=device)
        return empty_aligned(like, rows, columns).normal_(generator=generator)

    def weight(d_out: int, d_in: int) -> Tensor:
        return normal(d_out, d_in).mul_(d_in**-0.5).contiguous()

    def plain(name: str, op: Callable[[ModuleType], Function], *inputs: Tensor) -> Case:
        return Case(name, op, list(inputs), costs[name], gradients=False)

    def both(name: str, op: Callable[[ModuleType], Function], *inputs: Tensor) -> Iterator[Case]:
        yield plain(name, op, *inputs)
        leaves = [x.detach().requires_grad_() for x in inputs]
        name = f"{name}, gradients"
        yield Case(name, op, leaves, costs[name], gradients=True)

    yield from both("down, q/k/v", down, normal(n, d), *(weight(r, d) for _ in range(3)))
    yield from both("down, gate/up", down, normal(n, d), *(weight(r, d) for _ in range(2)))
    yield from both("down, o", down, normal(n, d), weight(r, d))
    yield from both("down, MLP down", down, normal(n, d_ff), weight(r, d_ff))
    yield from both("up, q/k/v", up, normal(n, 3 * r), *(weight(d, r) for _ in range(3)))
    name = "up_add, o or MLP down"
    yield from both(name, up_add, normal(n, r), weight(d, r), normal(n, d))
    for name, rows, width, projections in (
        ("up_backward, q/k/v", n, d, 3),
        ("up_backward, o or MLP down", n, d, 1),
        ("up_backward, gate/up", n, d_ff, 2),
    ):
        dys = [normal(rows, width) for _ in range(projections)]
        weights = [weight(width, r) for _ in range(projections)]
        yield plain(name, up_backward, normal(rows, projections * r), *dys, *weights)
    z, gate, up_weight = normal(n, 2 * r), weight(d_ff, r), weight(d_ff, r)
    yield from both("gated_down", gated_down, z, gate, up_weight, weight(r, d_ff))
    yield plain("gated_down_backward", gated_down_backward, normal(n, d_ff), z, gate, up_weight)


def down(library: ModuleType) -> Function:
    return lambda x, *weights: (library.down(x, weights),)


def up(library: ModuleType) -> Function:
    return lambda z, *weights: library.up(z, weights)


def up_add(library: ModuleType) -> Function:
    return lambda z, weight, residual: library.up(z, [weight], residual)


def gated_down(library: ModuleType) -> Function:
    return lambda z, gate, up, down: (library.gated_down(z, gate, up, down),)


def up_backward(library: ModuleType) -> Function:
    def function(z: Tensor, *others: Tensor) -> Sequence[Tensor]:
        half = len(others) // 2
        dys, weights = list(others[:half]), list(others[half:])
        return (_backward_ops(library).up_backward(dys, z, weights, True),)

    return function


def gated_down_backward(library: ModuleType) -> Function:
    return lambda *inputs: _backward_ops(library).gated_down_backward(*inputs, False)


def _backward_ops(library: ModuleType) -> ModuleType:
    """Where the ops of backward passes are: `fused` calls them through torch alone."""
    return reference if library is reference else _OPS


_OPS: ModuleType = torch.ops.cola_kernels
LIBRARIES = {"reference": reference, "fused": fused}
