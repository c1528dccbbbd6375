"""`sparse_low_rank`: y = x W^T with W = scale B A + S, S sparse (SLTrain, arXiv 2406.02214), on
torch's own kernels.

W (m, n) exists within the op alone: forward and backward each build it anew, and one matrix of that
size at a time. The backward pass keeps x, A, B, S's values and their positions.

Rows of x are N; A (r, n), B (m, r), k values. All are in one dtype, in which W is built too:
rounded once as any weight is, and where S has a value once more.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from cola_kernels.register import below_autograd, register


def sparse_low_rank(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    values: Tensor,
    index: Tensor,
    scale: float,
    columns: int,
) -> Tensor:
    """`reference.sparse_low_rank`: (..., n) -> (..., m).

    index: (k,), int32, each position once; of a W of so many `columns`, of which A may have more.
    """
    y: Tensor = torch.ops.cola_kernels.sparse_low_rank(x, a, b, values, index, scale, columns)
    return y


def _places(index: Tensor, columns: int, stored: int) -> Tensor:
    """Positions in a matrix whose rows are stored longer."""
    return index if columns == stored else index + index // columns * (stored - columns)


def _dense(a: Tensor, b: Tensor, values: Tensor, index: Tensor, scale: float) -> Tensor:
    weight = b.new_empty(b.shape[0], a.shape[1]).addmm_(b, a, beta=0, alpha=scale)
    weight.view(-1).index_add_(0, index, values)
    return weight


def _forward(
    x: Tensor, a: Tensor, b: Tensor, values: Tensor, index: Tensor, scale: float, columns: int
) -> Tensor:
    index = _places(index, columns, a.shape[1])
    return torch.nn.functional.linear(x, _dense(a, b, values, index, scale))


def _backward(
    dy: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    values: Tensor,
    index: Tensor,
    scale: float,
    columns: int,
) -> list[Tensor]:
    """dx = dy W, dA = scale B^T dW, dB = scale dW A^T and dvalues = dW[index], with dW = dy^T x."""
    index = _places(index, columns, a.shape[1])
    dweight = dy.flatten(0, -2).t() @ x.flatten(0, -2)
    da = torch.empty_like(a).addmm_(b.t(), dweight, beta=0, alpha=scale)
    db = torch.empty_like(b).addmm_(dweight, a.t(), beta=0, alpha=scale)
    dvalues = dweight.view(-1).index_select(0, index)
    del dweight  # before there is W
    return [dy @ _dense(a, b, values, index, scale), da, db, dvalues]


class _SparseLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        values: Tensor,
        index: Tensor,
        scale: float,
        columns: int,
    ) -> Tensor:
        ctx.save_for_backward(x, a, b, values, index)
        ctx.scale, ctx.columns = scale, columns
        with below_autograd():
            return SPARSE_LOW_RANK(x, a, b, values, index, scale, columns)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gradients = SPARSE_LOW_RANK_BACKWARD(dy, *ctx.saved_tensors, ctx.scale, ctx.columns)
        return *gradients, None, None, None


def _flops(x: Any, a: Any, b: Any, *_: Any) -> int:
    """Of shapes: of W, and of its product with x."""
    weight = b[0] * a[1]
    return 2 * weight * (a[0] + prod(x[:-1]))


SPARSE_LOW_RANK_BACKWARD = register(
    "sparse_low_rank_backward(Tensor dy, Tensor x, Tensor a, Tensor b, Tensor values, "
    "Tensor index, float scale, int columns) -> Tensor[]",
    _backward,
    fake=lambda dy, *tensors: [tensor.new_empty(tensor.shape) for tensor in tensors[:4]],
    # W again and dx; dW; dA and dB
    flops=lambda dy, x, a, b, *_: 2 * _flops(x, a, b) + 2 * a[0] * b[0] * a[1],
)
SPARSE_LOW_RANK = register(
    "sparse_low_rank(Tensor x, Tensor a, Tensor b, Tensor values, Tensor index, float scale, "
    "int columns) -> Tensor",
    _forward,
    fake=lambda x, a, b, *_: x.new_empty(*x.shape[:-1], b.shape[0]),
    flops=_flops,
    autograd=lambda *args: _SparseLowRank.apply(*args),
)
