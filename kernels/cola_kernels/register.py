"""How an op is registered with torch: its schema, and a function for each thing asked of it.

With `torch.library.Library` and an `autograd.Function` written out, because what
`torch.library.custom_op` and `register_autograd` do at every call, for lists of tensors above all,
takes several times as long as the call (docs/kernels.md). Dispatch modes see the op by its name:
selective checkpointing, FlopCounterMode, fake tensors.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.utils.flop_counter import register_flop_formula

below_autograd = torch._C._AutoDispatchBelowAutograd  # within an autograd.Function's forward

IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}  # by op

_LIBRARY = torch.library.Library("cola_kernels", "FRAGMENT")


def register(
    schema: str,
    implementation: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    autograd: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
) -> Any:
    """The op `cola_kernels::...` of a schema.

    Args:
        implementation: what it computes, on any device.
        fake: outputs of the same shapes, dtypes and strides, uncomputed.
        flops: of the shapes of the arguments.
        autograd: calls an `autograd.Function` whose forward calls the op `below_autograd`; without
            it the op has no gradient.
        decomposition: the same of plain aten, which torch.compile then fuses with its
            surroundings. Not for an op that a recomputation policy names: all that it falls into
            would be kept.
    """
    name = schema.partition("(")[0]
    qualified = f"cola_kernels::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, autograd, "Autograd")
    op = getattr(torch.ops.cola_kernels, name)
    IMPLEMENTATIONS[op.default] = implementation
    register_flop_formula(op)(lambda *args, out_shape=None, **_: flops(*args))
    if decomposition is not None:

        def decompose(mode: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            with mode:
                return decomposition(*args, **kwargs)

        torch.library.register_torch_dispatch(
            qualified, FunctionalTensorMode, decompose, lib=_LIBRARY
        )
    return op.default


def product_flops(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Of x (..., d) times each of the weights (r_i, d) or (d, r_i), by their shapes."""
    return sum(2 * prod(x[:-1]) * prod(weight) for weight in weights)
