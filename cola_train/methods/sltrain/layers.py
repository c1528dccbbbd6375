"""SLTrain: every linear of a block is low rank plus sparse, on a support that is drawn once (arXiv
2406.02214)."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from cola_kernels.sparse_low_rank import sparse_low_rank
from torch import Tensor, nn

from cola_train.config.schema import Config
from cola_train.methods.base import Method
from cola_train.methods.sltrain.options import SltrainOptions
from cola_train.model.init import Fill, Rows, constant, seed_of, uniform
from cola_train.model.mlp import MLP
from cola_train.model.padding import PaddedModule


class SparseLowRanks(PaddedModule):
    """Linears that share their input: y_i = W_i x, W_i = (alpha / r) B_i A_i plus `values` at
    `index`, the positions (row by row) that each projection's support has.

    Each runs as an op of its own, which builds one W.
    """

    def __init__(
        self,
        d_in: int,
        d_outs: dict[str, int],
        rank: int,
        alpha: float,
        support_size: Callable[[int], int],
    ) -> None:
        """Of each projection: parameters `<name>_A` (rank, d_in), `<name>_B` (d_out, rank) and
        `<name>_values` (k,); buffer `<name>_index` (k,), int32.

        support_size: k of a matrix of so many entries.
        """
        super().__init__()
        # plain, as Dynamo of 2.11 knows no int() of a `Width`
        self.d_in, self.d_outs, self.rank = int(d_in), dict(d_outs), rank
        self.scale = alpha / rank
        for name, d_out in d_outs.items():
            self.add_weight(f"{name}_A", rank, d_in)
            self.add_weight(f"{name}_B", d_out, rank)
            size = support_size(d_out * d_in)
            self.add_weight(f"{name}_values", size)
            self.register_buffer(f"{name}_index", torch.empty(size, dtype=torch.int32))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, ...]:
        """(..., d_in) -> one (..., d_out_i) for each projection, in order.

        `residual`, (..., d_out), is added to the output of a single projection.
        """
        outputs = tuple(self.project(x, name) for name in self.d_outs)
        if residual is None:
            return outputs
        (y,) = outputs
        return (residual + y,)

    def project(self, x: Tensor, name: str) -> Tensor:
        A, B, values, index = (
            getattr(self, f"{name}_{part}") for part in ("A", "B", "values", "index")
        )
        return sparse_low_rank(x, A, B, values, index, self.scale, self.d_in)

    def init(self, name: str) -> Fill:
        projection, _, part = name.rpartition("_")
        if part == "B":
            return constant(0.0)
        if part == "index":
            return support(self.d_outs[projection] * self.d_in)
        return uniform(self.d_in**-0.5)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_outs={self.d_outs}, rank={self.rank}, scale={self.scale}"


def support(entries: int) -> Fill:
    """Distinct positions among so many, ascending; the same on every device."""

    def fill(rows: Rows, key: str) -> None:
        generator = torch.Generator().manual_seed(seed_of(key))
        rows.local.copy_(draw_support(entries, len(rows.local), generator))

    return fill


def draw_support(entries: int, size: int, generator: torch.Generator) -> Tensor:
    """The first `size` distinct of random positions in range(entries), ascending, int64: each set
    of so many is as likely as another."""
    if 2 * size > entries:  # few are left out, and few are left to find
        rest = draw_support(entries, entries - size, generator)
        return torch.ones(entries, dtype=torch.bool).index_fill_(0, rest, False).nonzero()[:, 0]
    chosen = torch.zeros(entries, dtype=torch.bool)
    while missing := size - int(chosen.sum()):
        chosen[torch.randint(entries, (missing,), generator=generator)] = True
    return chosen.nonzero()[:, 0]


class Sltrain(Method):
    """Low rank plus sparse, of rank r."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, SltrainOptions)
        self.rank = config.method.bottleneck(config.model)
        self.alpha = config.method.alpha_of(config.model)
        self.support_size = partial(config.method.support_size, config.model)

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return SparseLowRanks(d_in, d_outs, self.rank, self.alpha, self.support_size)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return MLP(d_model, d_ff, silu=True, projections=self.projections, ops=self.ops)

    def fold(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W (m, n) in place of its factors, values and index."""
        scale = self.alpha / self.rank
        folded = dict(weights)
        for name in (end.removesuffix("_index") for end in weights if end.endswith("_index")):
            A, B, values, index = (
                folded.pop(f"{name}_{part}") for part in ("A", "B", "values", "index")
            )
            W = scale * (B @ A)
            W.view(-1).index_add_(0, index.long(), values)
            folded[name] = W
        return folded
