"""Run by methods/test_galore.py on four processes, and read by it: matrices under GaLore's
optimizer alone, cut by rows in several ways; and a tiny run with checkpoints around a refresh.

Arguments: the JSON file to write, a folder for checkpoints.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import micro_batches, save_checkpoint, values_config, work
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from cola_train import distributed
from cola_train.methods.galore.optimizer import GaloreAdamW
from cola_train.optim import AdamWOptions
from cola_train.train import build

# square, tall, wide; of four processes the last ones get fewer rows of these, or none
SHAPES = {"layers.0.q": (9, 9), "layers.0.gate": (13, 7), "layers.1.down": (5, 11)}
NAMES = list(SHAPES)
RANK, ALPHA, REFRESH_EVERY, STEPS = 4, 0.25, 2, 6
LR, EPS, WEIGHT_DECAY = 0.02, 1e-8, 0.1
CASES = {"full": 4, "hybrid": 2, "replicate": 1}  # processes that cut a matrix


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(NAMES.index(name))


def values_of(name: str, shape: tuple[int, ...], stored: tuple[int, ...] | None = None) -> Tensor:
    """A matrix's first values, and below them zeros."""
    values = 0.1 * torch.randn(shape, generator=generator(name))
    rows = (stored or shape)[0] - shape[0]
    return F.pad(values, (0, 0, 0, rows))


def gradients_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """(STEPS, m, n): with singular values 1, 1.5, 2, ..., so that no rounding changes vectors."""
    drawn = [torch.randn(STEPS, size, min(shape), generator=generator(name)) for size in shape]
    U, V = (torch.linalg.qr(each.double()).Q for each in drawn)
    values = 1 + torch.arange(min(shape)) / 2
    return (U * values @ V.mT).float()


def optimizer_of(
    parameters: dict[str, nn.Parameter], fira: bool = False, exact: bool = True
) -> GaloreAdamW:
    options = AdamWOptions(
        name="adamw", lr=LR, betas=[0.9, 0.99], eps=EPS, weight_decay=WEIGHT_DECAY
    )
    shapes = [torch.Size(SHAPES.get(name, p.shape)) for name, p in parameters.items()]
    return GaloreAdamW(
        [{"params": list(parameters.items()), "shapes": shapes}],
        options,
        rank=RANK,
        alpha=ALPHA,
        refresh_every=REFRESH_EVERY,
        exact=exact,
        fira=fira,
        seed=0,
    )


def train(
    optimizer: GaloreAdamW, parameters: dict[str, nn.Parameter], first: int = 0, steps: int = STEPS
) -> None:
    """Steps `first` to `steps`, on gradients that are zero where the parameter is padding."""
    for step in range(first, steps):
        for name, parameter in parameters.items():
            gradient = gradients_of(name, SHAPES[name])[step]
            gradient = F.pad(gradient, (0, 0, 0, len(parameter) - len(gradient)))
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.grad = distribute_tensor(gradient, mesh, placements)
            else:
                parameter.grad = gradient
        optimizer.step()


def local_elements(tensor: Tensor) -> int:
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def gathered(value: float) -> list[float]:
    values = [0.0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def spread(shards: int, fira: bool) -> dict[str, Any]:
    """The matrices cut by so many processes."""
    mesh = init_device_mesh("cpu", (4 // shards, shards), mesh_dim_names=("replicate", "shard"))
    parameters = {
        name: nn.Parameter(distribute_tensor(values_of(name, shape), mesh, [Replicate(), Shard(0)]))
        for name, shape in SHAPES.items()
    }
    optimizer, usual, svds = optimizer_of(parameters, fira), torch.linalg.svd, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal svds
        svds += 1
        return usual(*arguments, **options)

    torch.linalg.svd = counted  # type: ignore[assignment]
    train(optimizer, parameters)
    torch.linalg.svd = usual
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    matrices = [[t for t in state.values() if t.dim() > 0] for state in states.values()]
    return {
        "weights": {name: whole(parameter).tolist() for name, parameter in parameters.items()},
        "projections": {n: whole(state["projection"]).tolist() for n, state in states.items()},
        "shapes": {n: {k: list(t.shape) for k, t in state.items()} for n, state in states.items()},
        "sizes": {n: [t.numel() for t in of] for n, of in zip(states, matrices, strict=True)},
        "svds": gathered(svds),
        "held": gathered(sum(local_elements(t) for of in matrices for t in of)),
    }


def checkpoints(folder: Path) -> list[float]:
    """Losses of six steps of a tiny run with a refresh before the first and the fourth one; saved
    after the third and after the fourth."""
    config = values_config(method={"name": "galore", "refresh_every": 3})
    engine, losses = build(config, distributed.device()), []
    for step in range(6):
        losses.append(engine.train_step(micro_batches(step), 1e-2).loss)
        if step + 1 in (3, 4):
            save_checkpoint(engine, folder / f"at {step + 1}", step + 1)
    return losses


def main(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{mesh} {fira}": spread(shards, fira)
        for mesh, shards in CASES.items()
        for fira in (False, True)
    }
    return {**found, "losses": checkpoints(Path(folder))}


if __name__ == "__main__":
    work(main)
