"""Layers of a few rows on a GPU, for inference: see `cola_kernels.decode`.

What `select` gives, and layers whole. A few rows of weights of one shape go to the decode kernels
where those are faster (`few`), all else to torch's own. Weights are read where they lie.

Ops without a gradient: asking for one is an error. Shapes: n rows (any leading axes), d and d_1 a
layer's widths, r the bottleneck width, F = d_ff.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from cola_kernels import composed
from cola_kernels.decode_launch import ROWS, SMALL, gate_up_launch, project_launch
from cola_kernels.register import below_autograd, product_flops, register
from cola_kernels.support import (
    Checked,
    UnsupportedError,
    check,
    check_matrices,
    check_residual,
    check_rows,
    signature,
    target,
)

linear, gated = composed.linear, composed.gated


def down(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`reference.down`."""
    if not few(x, weights):
        return composed.down(x, weights)
    z: Tensor = torch.ops.cola_kernels.decode_down(x, list(weights))
    return z


def up(
    z: Tensor, weights: Sequence[Tensor], residual: Tensor | None = None, activation: bool = True
) -> tuple[Tensor, ...]:
    """`reference.up`; the outputs are views of one tensor."""
    check_residual("decode_up", weights, residual)
    if not few(z, weights):
        return composed.up(z, weights, residual, activation)
    y = torch.ops.cola_kernels.decode_up(z, list(weights), residual, activation)
    return tuple(y.chunk(len(weights), dim=-1))


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.gated_down`."""
    arguments = (z, gate, up, down, activation, gate_silu)
    if not few(z, [gate, up]):
        return composed.gated_down(*arguments)
    z_down: Tensor = torch.ops.cola_kernels.decode_gated_down(*arguments)
    return z_down


def encode(
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """`reference.encode`: auto-encoders that share their input, of at most `ROWS` rows."""
    check_residual("decode_encode", b, residual)
    arguments = (x, list(a), list(b), residual, norm, eps, activation)
    y = torch.ops.cola_kernels.decode_encode(*arguments)
    return tuple(y.chunk(len(b), dim=-1))


def mlp(
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    down: Sequence[Tensor],
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """`reference.mlp`: the gated MLP from its input to its output, of at most `ROWS` rows."""
    weights, options = (list(a), list(b), list(down)), (residual, norm, eps, activation, gate_silu)
    y: Tensor = torch.ops.cola_kernels.decode_mlp(x, *weights, *options)
    return y


def rows_of(x: Checked) -> int:
    return prod(x.shape[:-1])


def few(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the decode kernels take these, and in less time than torch's (`SMALL`)."""
    same = all(weight.shape == weights[0].shape for weight in weights)
    most = ROWS if weights[0].numel() < SMALL else 1
    return same and 1 <= len(weights) <= 3 and 1 <= rows_of(x) <= most


def flat(x: Tensor) -> Tensor:
    """Contiguous rows that begin on 16 bytes; copied only if they are not so."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return rows if rows.storage_offset() * rows.element_size() % 16 == 0 else rows.clone()


def flats(weights: Sequence[Tensor]) -> list[Tensor]:
    return [flat(weight) for weight in weights]


def maybe(x: Tensor | None) -> Tensor | None:
    return None if x is None else flat(x)


@cache
def _check(
    op: str, tensors: tuple[tuple[str, Checked], ...], shapes: tuple[tuple[int, ...], ...]
) -> None:
    (name, x), *_ = tensors
    check_rows(op, name, x)
    if not 1 <= rows_of(x) <= ROWS:
        raise UnsupportedError(
            f"cola_kernels.{op}: {name} has {rows_of(x)} rows; it takes 1 to {ROWS}"
        )
    names = [name for name, _ in tensors]
    check(op, dict(tensors), dict(zip(names, shapes, strict=True)))


def _matrix(op: str, name: str, weights: Sequence[Tensor]) -> tuple[int, int]:
    """The shape of the first of 1 to 3.

    Raises:
        UnsupportedError: there are more or less, or it is no matrix.
    """
    if not 1 <= len(weights) <= 3:
        raise UnsupportedError(f"cola_kernels.{op}: {len(weights)} {name}; it takes 1 to 3")
    check_matrices(op, {f"{name}[0]": weights[0]})
    rows, columns = weights[0].shape
    return rows, columns


Expected = tuple[str, Tensor | None, tuple[int, ...]]


def _checked(op: str, *expected: Expected) -> None:
    """Raises UnsupportedError for tensors that have not the shape expected of them, or too many
    rows; the first has the rows."""
    given = [(name, signature(x), shape) for name, x, shape in expected if x is not None]
    _check(op, tuple(of[:2] for of in given), tuple(shape for *_, shape in given))


def _each(name: str, weights: Sequence[Tensor], shape: tuple[int, ...]) -> Iterator[Expected]:
    for i, weight in enumerate(weights):
        yield f"{name}[{i}]", weight, shape


def _encode(
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    activation: bool,
) -> Tensor:
    op, lead = "decode_encode", x.shape[:-1]
    (r, d), (d_out, _) = _matrix(op, "a", a), _matrix(op, "b", b)
    if len(a) != len(b):
        raise UnsupportedError(f"cola_kernels.{op}: {len(a)} a and {len(b)} b; give it as many")
    _checked(
        op, ("x", x, (*lead, d)), *_each("a", a, (r, d)), *_each("b", b, (d_out, r)),
        ("residual", residual, (*lead, d_out)), ("norm", norm, (d,)),
    )  # fmt: skip
    rows, of = flat(x), target(op, x.device)
    z, y = rows.new_empty(len(rows), len(a) * r), x.new_empty(*lead, len(b) * d_out)
    project_launch(rows, flats(a), z, of, norm=maybe(norm), eps=eps, write_silu=activation).run()
    out = y.view(len(rows), -1)
    project_launch(z, flats(b), out, of, split=True, residual=maybe(residual)).run()
    return y


def _down(x: Tensor, weights: list[Tensor]) -> Tensor:
    op, lead = "decode_down", x.shape[:-1]
    r, d = _matrix(op, "weights", weights)
    _checked(op, ("x", x, (*lead, d)), *_each("weights", weights, (r, d)))
    z = x.new_empty(*lead, len(weights) * r)
    out = z.view(rows_of(x), -1)
    project_launch(flat(x), flats(weights), out, target(op, x.device)).run()
    return z


def _up(z: Tensor, weights: list[Tensor], residual: Tensor | None, activation: bool) -> Tensor:
    op, lead = "decode_up", z.shape[:-1]
    d_out, r = _matrix(op, "weights", weights)
    _checked(
        op, ("z", z, (*lead, len(weights) * r)), *_each("weights", weights, (d_out, r)),
        ("residual", residual, (*lead, d_out)),
    )  # fmt: skip
    y = z.new_empty(*lead, len(weights) * d_out)
    project_launch(
        flat(z), flats(weights), y.view(rows_of(z), -1), target(op, z.device),
        split=True, read_silu=activation, residual=maybe(residual),
    ).run()  # fmt: skip
    return y


def _gated_down(
    z: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: bool, gate_silu: bool
) -> Tensor:
    op, lead = "decode_gated_down", z.shape[:-1]
    (F, r), (r_down, _) = _matrix(op, "gate", [gate]), _matrix(op, "down", [down])
    _checked(
        op, ("z", z, (*lead, 2 * r)), ("gate", gate, (F, r)), ("up", up, (F, r)),
        ("down", down, (r_down, F)),
    )  # fmt: skip
    rows, of = flat(z), target(op, z.device)
    p, z_down = rows.new_empty(len(rows), F), z.new_empty(*lead, r_down)
    gate_up_launch(rows, flat(gate), flat(up), p, activation, gate_silu, of).run()
    project_launch(p, [flat(down)], z_down.view(len(rows), -1), of).run()
    return z_down


def _mlp(
    x: Tensor,
    a: list[Tensor],
    b: list[Tensor],
    down: list[Tensor],
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    activation: bool,
    gate_silu: bool,
) -> Tensor:
    op, lead = "decode_mlp", x.shape[:-1]
    (r, d), (F, _), (r_down, _) = (_matrix(op, *of) for of in (("a", a), ("b", b), ("down", down)))
    if (len(a), len(b), len(down)) != (2, 2, 2):
        raise UnsupportedError(
            f"cola_kernels.{op}: {len(a)} a, {len(b)} b and {len(down)} down; give it 2 of each"
        )
    d_out = down[1].shape[0]
    _checked(
        op, ("x", x, (*lead, d)), *_each("a", a, (r, d)), *_each("b", b, (F, r)),
        ("down[0]", down[0], (r_down, F)), ("down[1]", down[1], (d_out, r_down)),
        ("residual", residual, (*lead, d_out)), ("norm", norm, (d,)),
    )  # fmt: skip
    rows, of = flat(x), target(op, x.device)
    n = len(rows)
    z, p, z_down = (rows.new_empty(n, width) for width in (2 * r, F, r_down))
    y = x.new_empty(*lead, d_out)
    project_launch(rows, flats(a), z, of, norm=maybe(norm), eps=eps, write_silu=activation).run()
    gate_up_launch(z, flat(b[0]), flat(b[1]), p, False, gate_silu, of).run()
    project_launch(p, [flat(down[0])], z_down, of, write_silu=activation).run()
    project_launch(z_down, [flat(down[1])], y.view(n, -1), of, residual=maybe(residual)).run()
    return y


def _without_gradient(name: str) -> Callable[..., Any]:
    """The op below autograd, unless a gradient is asked for."""

    def call(*arguments: Any) -> Any:
        tensors = [t for of in arguments for t in (of if isinstance(of, list) else [of])]
        wanted = any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
        if wanted and torch.is_grad_enabled():
            raise UnsupportedError(
                f"cola_kernels.{name} is for inference and has no gradient; call it under "
                "torch.no_grad()"
            )
        with below_autograd():
            return getattr(torch.ops.cola_kernels, name)(*arguments)

    return call


def _register(
    schema: str,
    implementation: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    flops: Callable[..., int],
) -> None:
    name = schema.partition("(")[0]
    register(schema, implementation, fake=fake, flops=flops, autograd=_without_gradient(name))


_register(
    "decode_down(Tensor x, Tensor[] weights) -> Tensor",
    _down,
    lambda x, weights: x.new_empty(*x.shape[:-1], len(weights) * weights[0].shape[0]),
    product_flops,
)
_register(
    "decode_up(Tensor z, Tensor[] weights, Tensor? residual, bool activation) -> Tensor",
    _up,
    lambda z, weights, *_: z.new_empty(*z.shape[:-1], len(weights) * weights[0].shape[0]),
    product_flops,
)
_register(
    "decode_gated_down(Tensor z, Tensor gate, Tensor up, Tensor down, bool activation, "
    "bool gate_silu) -> Tensor",
    _gated_down,
    lambda z, gate, up, down, *_: z.new_empty(*z.shape[:-1], down.shape[0]),
    lambda z, gate, up, down, *_: product_flops(z, [gate, up, down]),
)
_register(
    "decode_encode(Tensor x, Tensor[] a, Tensor[] b, Tensor? residual, Tensor? norm, float eps, "
    "bool activation) -> Tensor",
    _encode,
    lambda x, a, b, *_: x.new_empty(*x.shape[:-1], len(b) * b[0].shape[0]),
    lambda x, a, b, *_: product_flops(x, [*a, *b]),
)
_register(
    "decode_mlp(Tensor x, Tensor[] a, Tensor[] b, Tensor[] down, Tensor? residual, Tensor? norm, "
    "float eps, bool activation, bool gate_silu) -> Tensor",
    _mlp,
    lambda x, a, b, down, *_: x.new_empty(*x.shape[:-1], down[1].shape[0]),
    lambda x, a, b, down, *_: product_flops(x, [*a, *b, *down]),
)
