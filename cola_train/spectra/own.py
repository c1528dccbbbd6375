"""Looking at our own models: all of their projections go through `ops`, which are wrapped."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.model.linear import Ops
from cola_train.spectra.recorder import Key, Linear, Place, Recorder

LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class WatchedOps:
    """`ops` of one module that show what they compute: see(projection, place, x).

    names: the projection of each weight, by its id. A residual is added to an output after that is
    shown, and what lies between gate, up and down is computed op by op.
    """

    ops: Ops
    names: dict[int, str]
    see: Callable[[str, Place, Tensor], None]

    def linear(
        self, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        ys = self.ops.linear(x, weights, None)
        for W, y in zip(weights, ys, strict=True):
            self.see(self.names[id(W)], "input", x)
            self.see(self.names[id(W)], "output", y)
        return added(ys, residual)

    def gated(self, g: Tensor, u: Tensor, gate_silu: bool) -> Tensor:
        return self.ops.gated(g, u, gate_silu)

    def down(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        for A in weights:
            self.see(self.names[id(A)], "input", x)
        return self.ops.down(x, weights)

    def up(
        self, z: Tensor, weights: Sequence[Tensor], residual: Tensor | None, activation: bool
    ) -> tuple[Tensor, ...]:
        ys = self.ops.up(z, weights, None, activation)
        zs = z.split([B.shape[1] for B in weights], dim=-1)
        for B, z_i, y in zip(weights, zs, ys, strict=True):
            name = self.names[id(B)]
            self.see(name, "z", z_i)
            self.see(name, "s", F.silu(z_i) if activation else z_i)
            self.see(name, "output", y)
        return added(ys, residual)

    def gated_down(
        self,
        z: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        activation: bool,
        gate_silu: bool,
    ) -> Tensor:
        g, u = self.up(z, [gate, up], None, activation)
        return self.down(self.gated(g, u, gate_silu), [down])


def added(ys: tuple[Tensor, ...], residual: Tensor | None) -> tuple[Tensor, ...]:
    return ys if residual is None else (residual + ys[0],)


def modules(model: nn.Module) -> Iterator[tuple[int, nn.Module, dict[str, Tensor]]]:
    """Those of the blocks that own weights of projections: block, module, its weights by name."""
    for name, module in model.named_modules():
        weights = dict(module.named_parameters(recurse=False))
        if (match := LAYER.match(name)) and weights and hasattr(module, "ops"):
            yield int(match[1]), module, weights


def projection_of(weight: str) -> str:
    return weight.removesuffix("_A").removesuffix("_B")


def linears_of(model: nn.Module) -> list[Linear]:
    """All of a model that `inference.load.load` returns: its linears are dense, or bottlenecks."""
    found = []
    for layer, _, weights in modules(model):
        for name in dict.fromkeys(map(projection_of, weights)):
            if name in weights:
                d_out, d_in = weights[name].shape
                found.append(Linear(layer, name, d_in, d_out))
            else:
                (rank, d_in), d_out = weights[f"{name}_A"].shape, len(weights[f"{name}_B"])
                found.append(Linear(layer, name, d_in, d_out, rank))
    return found


@contextmanager
def watching(model: nn.Module, recorder: Recorder, layers: Sequence[int]) -> Iterator[None]:
    """Show the recorder what flows through the linears of these blocks."""

    def watched(layer: int, ops: Ops, weights: dict[str, Tensor]) -> WatchedOps:
        names = {id(weight): projection_of(name) for name, weight in weights.items()}
        return WatchedOps(ops, names, lambda *what: recorder.see(Key(layer, *what[:2]), what[2]))

    before: list[tuple[nn.Module, Ops]] = []
    try:
        for layer, module, weights in modules(model):
            if layer in layers:
                before.append((module, module.ops))  # type: ignore[arg-type]
                module.ops = watched(layer, module.ops, weights)  # type: ignore[assignment,arg-type]
        yield
    finally:
        for module, ops in before:
            module.ops = ops  # type: ignore[assignment]
