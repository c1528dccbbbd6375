"""How parameters and buffers begin: the same values on any number of processes, padded or not.

A module with parameters or buffers of its own has `init(name)`, which returns a `Fill` for each.
"""

import hashlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cola_train.model.padding import PaddedModule, Padding


@dataclass(frozen=True)
class Rows:
    """A process's rows of a tensor, without padding.

    local: (n, ...), to be filled in place; first: the first one's number; shape: the whole one's.
    """

    local: Tensor
    first: int
    shape: torch.Size


Fill = Callable[[Rows, str], None]  # fills rows in place; what is random is seeded by the key

# Rows drawn from one seed: a process draws only the blocks it holds a part of. A vector's rows are
# single numbers.
INIT_ROWS, INIT_NUMBERS = 256, 2**16


def constant(value: float) -> Fill:
    return lambda rows, key: rows.local.fill_(value)  # type: ignore[return-value]


def computed(make: Callable[[torch.device], Tensor]) -> Fill:
    """What `make` returns, of the tensor's shape; for buffers, which every process holds whole."""
    return lambda rows, key: rows.local.copy_(make(rows.local.device))  # type: ignore[return-value]


def normal(std: float) -> Fill:
    """N(0, std)."""
    return _drawn(lambda rows, generator: rows.normal_(0.0, std, generator=generator))


def uniform(bound: float) -> Fill:
    """U(-bound, bound)."""
    return _drawn(lambda rows, generator: rows.uniform_(-bound, bound, generator=generator))


def seed_of(key: str) -> int:
    """The seed of a generator, of 63 bits."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _drawn(draw: Callable[[Tensor, torch.Generator], Tensor]) -> Fill:
    """Block i of INIT_ROWS rows of the whole tensor (of a vector INIT_NUMBERS) is drawn from a
    generator seeded by key and i, so the values do not depend on how the rows are sharded, nor on
    padding."""

    def fill(rows: Rows, key: str) -> None:
        local, first = rows.local, rows.first
        if not len(local):
            return
        generator = torch.Generator(device=local.device)
        size = INIT_NUMBERS if len(rows.shape) == 1 else INIT_ROWS
        for block in range(first // size, -(-(first + len(local)) // size)):
            generator.manual_seed(seed_of(f"{key}/{block}"))
            start = block * size
            shape = (min(size, rows.shape[0] - start), *rows.shape[1:])
            drawn = draw(torch.empty(shape, device=local.device), generator)
            low, high = max(start, first), min(start + len(drawn), first + len(local))
            local[low - first : high - first] = drawn[low - start : high - start]

    return fill


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that the module holds itself."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, but: Container[str] = ()) -> None:
    """Fill every parameter and buffer, as its module says, but those of these names."""
    for module_name, module in model.named_modules():
        paddings = module.paddings if isinstance(module, PaddedModule) else {}
        for name, tensor in own_tensors(module):
            if f"{module_name}.{name}".lstrip(".") in but:
                continue
            begin: Any = module.init  # a module without it is a bug of ours
            key = f"{seed}/{module_name}.{name}"
            local, first = local_rows(tensor, key)
            shape = tensor.shape
            if padding := paddings.get(name):
                local, shape = _without_padding(local, first, padding), padding.shape
            begin(name)(Rows(local, first, shape), key)


def _without_padding(local: Tensor, first: int, padding: Padding) -> Tensor:
    """A view of rows from the first one on, once their padding is zero."""
    local.zero_()
    rows, *others = padding.shape
    held = min(len(local), max(0, rows - first))
    return Padding(torch.Size([held, *others]), local.shape).cut(local)


def local_rows(tensor: Tensor, key: str) -> tuple[Tensor, int]:
    """This process's rows, and the first one's number."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    if tuple(shape[1:]) != tuple(tensor.shape[1:]):
        raise ValueError(f"{key}: only sharding of dimension 0 is supported")
    return tensor.to_local(), offset[0]
