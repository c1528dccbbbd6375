"""A method that the product does not know, with all that a method may have: a frozen weight beside
trained factors, an integer buffer, a number to log, something merged between steps, a padded d_ff
beside a rank that is not.

y = W x + B (A x)[index]: W is frozen, index a permutation of the rank-r vector that moves on with
every step. Every MERGE_EVERY steps W += B A[index], B = 0 and B's optimizer state is reset (as
ReLoRA does). Its learning rate is constant, and its norms have one of their own: 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cola_train import distributed
from cola_train.config.fields import PositiveInt
from cola_train.config.groups import ModelConfig
from cola_train.config.schema import Config
from cola_train.methods import METHODS, MethodOptions
from cola_train.methods.base import Method, Weights, implementation
from cola_train.methods.costs import BlockCost, Weight, all_or_input
from cola_train.methods.options import Run
from cola_train.model.init import Fill, computed, normal
from cola_train.model.linear import INIT_STD, Ops
from cola_train.model.mlp import MLP
from cola_train.model.padding import PaddedModule
from cola_train.optim import OptimOptions
from cola_train.optim.groups import parameter_groups
from cola_train.parallel.topology import Topology

MERGE_EVERY = 2


@dataclass(frozen=True)
class ToyOptions(MethodOptions):
    rank: PositiveInt = 4

    implementation = "toy_method:Toy"

    def learning_rate(self, run: Run, step: int) -> float:
        return run.optim.lr / 2

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        if self.rank > run.model.d_model:
            yield f"method.rank: {self.rank} is more than model.d_model ({run.model.d_model})"

    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        d, f, r = model.d_model, model.inner.stored, self.rank
        frozen = [Weight((d_out, d_in), trainable=False) for d_in, d_out in model.linear_shapes]
        factors = [
            Weight(shape)
            for d_in, d_out in model.linear_shapes
            for shape in ((r, d_in), (d_out, r))
        ]
        whole = sum(weight.elements for weight in frozen)
        low = sum(weight.elements for weight in factors)
        cost = all_or_input(
            model, length, policy, weights=(*frozen, *factors),
            forward=2 * (whole + low), backward=2 * whole + 4 * low,  # no gradient of W
            not_again=2 * d * r,
            # as full rank, but v is a tensor of its own; and seven permuted rank-r vectors
            saved=8 * d + 3 * f + 7 * r,
            workspace=(3 * f + d,) * 2,
        )  # fmt: skip
        return replace(cost, buffer_bytes=4 * 8 * r)  # of qkv, o, gate_up and down


class ToyLinears(PaddedModule):
    def __init__(self, d_in: int, d_outs: dict[str, int], rank: int, ops: Ops) -> None:
        super().__init__()
        self.d_outs, self.ops, self.rank = dict(d_outs), ops, rank
        for name, d_out in d_outs.items():
            self.add_weight(f"{name}_W", d_out, d_in, trainable=False)
            self.add_weight(f"{name}_A", rank, d_in)
            self.add_weight(f"{name}_B", d_out, rank)
        self.index: Tensor
        self.register_buffer("index", torch.empty(rank, dtype=torch.int64))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        def of(kind: str) -> list[Tensor]:
            return [getattr(self, f"{name}_{kind}") for name in self.d_outs]

        whole = self.ops.linear(x, of("W"), residual)
        z = self.ops.down(x, of("A")).unflatten(-1, (-1, self.rank))[..., self.index]
        low = self.ops.up(z.flatten(-2), of("B"), None, False)
        return tuple(w + y for w, y in zip(whole, low, strict=True))

    def init(self, name: str) -> Fill:
        if name == "index":
            return computed(lambda device: torch.arange(self.rank - 1, -1, -1, device=device))
        return normal(INIT_STD)


class Toy(Method):
    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, ToyOptions)
        self.rank = config.method.rank
        self.device = device
        self.linears: list[ToyLinears] = []

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        self.linears.append(ToyLinears(d_in, d_outs, self.rank, self.ops))
        return self.linears[-1]

    def optimizer(self, model: nn.Module, options: OptimOptions) -> Optimizer:
        groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "lr_scale": 0.0}]
        (of_all,) = parameter_groups(model, options)
        for name, parameter in of_all["params"]:
            groups["norm" in name]["params"].append((name, parameter))
        return implementation(options.implementation)(groups, options)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return MLP(d_model, d_ff, silu=True, projections=self.projections, ops=self.ops)

    def metrics(self) -> dict[str, Tensor]:
        return {"toy_rank": torch.tensor(float(distributed.rank()), device=self.device)}

    def after_step(self, weights: Weights, step: int) -> dict[str, float]:
        merges = step % MERGE_EVERY == 0
        if merges:
            self.merge(weights)
        for linears in self.linears:
            linears.index.copy_(linears.index.roll(1))
        return {"toy_merge": step / MERGE_EVERY} if merges else {}

    def merge(self, weights: Weights) -> None:
        index = self.linears[0].index
        for name in weights.names():
            if not name.endswith("_W"):
                continue
            A, B = (weights.full(name[:-1] + kind) for kind in "AB")
            weights.assign(name, weights.full(name) + B @ A[index])
            weights.assign(f"{name[:-1]}B", torch.zeros_like(B))
            weights.change_state(f"{name[:-1]}B", torch.zeros_like)


def register() -> None:
    METHODS["toy"] = ToyOptions
