"""How parameters and buffers begin: the same values on any number of processes.

A module with parameters or buffers of its own has `init(name)`, which returns a `Fill` for each.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Fill = Callable[[Tensor, str], None]  # fills a tensor in place; what is random is seeded by the key

INIT_ROWS = 256  # rows drawn from one seed: a process draws only the blocks it holds a part of


def constant(value: float) -> Fill:
    return lambda tensor, key: tensor.fill_(value)  # type: ignore[return-value]


def computed(make: Callable[[torch.device], Tensor]) -> Fill:
    """What `make` returns, of the tensor's shape; for buffers, which every process holds whole."""
    return lambda tensor, key: tensor.copy_(make(tensor.device))  # type: ignore[return-value]


def normal(std: float) -> Fill:
    """N(0, std). Block i of INIT_ROWS rows of a (possibly sharded) tensor is drawn from a generator
    seeded by key and i, so the values do not depend on how the rows are sharded."""

    def fill(tensor: Tensor, key: str) -> None:
        local, first = local_rows(tensor, key)
        generator = torch.Generator(device=local.device)
        for block in range(first // INIT_ROWS, -(-(first + len(local)) // INIT_ROWS)):
            digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            start = block * INIT_ROWS
            shape = (min(INIT_ROWS, tensor.shape[0] - start), *tensor.shape[1:])
            drawn = torch.empty(shape, device=local.device).normal_(0.0, std, generator=generator)
            low, high = max(start, first), min(start + len(drawn), first + len(local))
            local[low - first : high - first] = drawn[low - start : high - start]

    return fill


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that the module holds itself."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer, as its module says."""
    for module_name, module in model.named_modules():
        for name, tensor in own_tensors(module):
            begin: Any = module.init  # a module without it is a bug of ours
            begin(name)(tensor, f"{seed}/{module_name}.{name}")


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
