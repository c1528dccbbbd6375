"""`sparse_low_rank` against a dense weight and autograd."""

import pytest
import torch
from cola_kernels import reference
from cola_kernels.sparse_low_rank import sparse_low_rank

SCALE = 0.5
SHAPES = {"square": (24, 24), "tall": (40, 16), "wide": (16, 40)}


def arguments(m, n, dtype, stored=0):
    """x, A, B and values, then positions; A's rows have `stored` more columns of zeros, x too."""
    generator = torch.Generator().manual_seed(m * n)
    drawn = [(3, 5, n), (4, n), (m, 4), (m * n // 10,)]
    x, a, b, values = (torch.randn(shape, generator=generator) for shape in drawn)
    x, a = (torch.nn.functional.pad(tensor, (0, stored)) for tensor in (x, a))
    index = torch.randperm(m * n, generator=generator)[: len(values)].sort()[0].int()
    return [tensor.to(dtype).requires_grad_() for tensor in (x, a, b, values)], index


def results(function, inputs, index, columns):
    y = function(*inputs, index, SCALE, columns)
    dy = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, dy)


def dense(inputs, index, columns):
    """The same by plain torch, and in fp64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    each = (results(reference.sparse_low_rank, of, index, columns) for of in (inputs, exact))
    return [[tensor.double() for tensor in of] for of in each]


@pytest.mark.parametrize("stored", [0, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_a_dense_weight(shape, stored):
    (m, n), dtype = SHAPES[shape], torch.float32
    inputs, index = arguments(m, n, dtype, stored)
    _, exact = dense(inputs, index, n)
    for ours, truth in zip(results(sparse_low_rank, inputs, index, n), exact, strict=True):
        assert ours.shape == truth.shape
        assert (ours - truth).norm() < 1e-6 * truth.norm()


def test_bf16_is_as_exact_as_plain_torch():
    inputs, index = arguments(96, 80, torch.bfloat16)
    plain, exact = dense(inputs, index, 80)
    ours = results(sparse_low_rank, inputs, index, 80)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        limit = 2 * (theirs - truth).norm() + torch.finfo(torch.bfloat16).eps * truth.norm()
        assert (mine - truth).norm() <= limit


def test_the_op_has_what_torch_asks_of_one():
    inputs, index = arguments(24, 16, torch.float32, stored=7)
    op = torch.ops.cola_kernels.sparse_low_rank.default
    torch.library.opcheck(op, (*inputs, index, SCALE, 16))
