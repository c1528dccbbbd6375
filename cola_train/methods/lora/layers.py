"""LoRA's linears: a frozen weight, and two factors that are trained beside it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cola_train.config.schema import Config
from cola_train.methods.base import Method
from cola_train.methods.lora.options import LoraOptions
from cola_train.model.init import Fill, constant, normal, uniform
from cola_train.model.linear import INIT_STD, Ops
from cola_train.model.mlp import MLP
from cola_train.model.padding import PaddedModule
from cola_train.model.tap import Joined, tap


class LoraLinears(PaddedModule):
    """Linears that share their input: y_i = W_i x + s B_i A_i x, W_i frozen.

    Source: arXiv 2106.09685, eq. 3; A begins as torch's linears do, B as 0.
    """

    def __init__(
        self, d_in: int, d_outs: dict[str, int], rank: int, scale: float, ops: Ops
    ) -> None:
        """Parameters `<name>` (d_out, d_in), named as in full rank; `<name>_A` (rank, d_in) and
        `<name>_B` (d_out, rank) for each projection."""
        super().__init__()
        self.d_in, self.d_outs, self.rank, self.scale = d_in, dict(d_outs), rank, scale
        self.ops, self.joined = ops, Joined(dict.fromkeys(d_outs, rank), silu=False)
        for name, d_out in d_outs.items():
            self.add_weight(name, d_out, d_in, trainable=False)
            self.add_weight(f"{name}_A", rank, d_in)
            self.add_weight(f"{name}_B", d_out, rank)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        z = tap("z", self.ops.down(x, self._weights("_A")), self.joined) * self.scale
        low = self.ops.up(z, self._weights("_B"), None, False)
        # last: nothing that it makes is kept, so a recomputation ends before it
        whole = self.ops.linear(x, self._weights(""), residual)
        return tuple(w + y for w, y in zip(whole, low, strict=True))

    def _weights(self, ending: str) -> list[Tensor]:
        return [getattr(self, f"{name}{ending}") for name in self.d_outs]

    def init(self, name: str) -> Fill:
        if name.endswith("_A"):
            return factor_fill(self.d_in)
        return constant(0.0) if name.endswith("_B") else normal(INIT_STD)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_outs={self.d_outs}, rank={self.rank}, scale={self.scale}"


def factor_fill(d_in: int) -> Fill:
    """U(-1, 1) / sqrt(d_in), how A (rank, d_in) begins."""
    return uniform(float(d_in) ** -0.5)


class Lora(Method):
    """Factors of rank r beside a frozen full-rank weight, in SwiGLU too."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, LoraOptions)
        self.rank = config.method.bottleneck(config.model)
        self.scale = config.method.scale(config.model)

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return LoraLinears(d_in, d_outs, self.rank, self.scale, self.ops)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return MLP(d_model, d_ff, silu=True, projections=self.projections, ops=self.ops)

    def fold(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full rank's weights: W + s B A in place of each W, and no factors."""
        folded = dict(weights)
        for name in with_factors(weights):
            A, B = (folded.pop(factor) for factor in factors_of(name))
            folded[name] = torch.addmm(folded[name], B, A, alpha=self.scale)
        return folded


def with_factors(names: Iterable[str]) -> list[str]:
    """Those of a model's weights that have factors."""
    names = dict.fromkeys(names)
    return [name for name in names if names.keys() >= set(factors_of(name))]


def factors_of(name: str) -> tuple[str, str]:
    """The names of A and B."""
    return f"{name}_A", f"{name}_B"
