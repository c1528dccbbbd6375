"""A dense model's weights as bottlenecks': for W the factors that change least what it computes.

Shapes: n positions, d_in and d_out features, r the rank. A is (r, d_in), B (d_out, r); a bottleneck
computes B s(A x), s the SiLU or the identity. docs/dense_to_cola.md has the mathematics.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.config.schema import Config
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import Batch, BatchLoader, check_predictions, count_samples
from cola_train.errors import UserError
from cola_train.methods.base import build_method
from cola_train.methods.bottleneck.options import BottleneckOptions
from cola_train.model.attention import rotary_for
from cola_train.model.context import AttentionContext
from cola_train.model.init import initialise, seed_of
from cola_train.model.llama import Block, Llama, build_model
from cola_train.model.mlp import MLP
from cola_train.model.padding import remove_padding

TINY = 1e-30
BATCH_TOKENS = 4096  # that pass together
RIDGE = 1e-4  # of a least-squares fit, in parts of the mean square of an input
# Root mean square of a rank-r number before its SiLU, which is the straighter the smaller it is;
# docs/dense_to_cola.md has losses by it.
SIZE = 0.3

# x (n, d_in) and y (n, d_out), batch by batch, anew at each call
Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class Moments:
    """Sums over positions, fp64: xx of x x^T (d_in, d_in), yx of y x^T (d_out, d_in), n of ones."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self.n = 0
        self.xx: Tensor
        self.yx: Tensor
        for x, y in pairs:
            self.add(x, y)

    def add(self, x: Tensor, y: Tensor) -> None:
        """A batch: x (n, d_in), y (n, d_out)."""
        x, y = x.double(), y.double()
        xx, yx = x.t() @ x, y.t() @ x
        self.xx, self.yx = (self.xx + xx, self.yx + yx) if self.n else (xx, yx)
        self.n += len(x)

    def second(self, ridge: float = RIDGE) -> Tensor:
        """C = E[x x^T], and `ridge` of its mean diagonal on the diagonal: what the positions did
        not show counts a little."""
        C = self.xx / self.n
        C.diagonal().add_((ridge * C.trace() / len(C)).clamp(min=TINY))
        return C

    def fitted(self, W: Tensor, ridge: float = RIDGE) -> Tensor:
        """The weight nearest to y = W' x in least squares, held to W where x says little:
        W + E[(y - W x) x^T] (C + ridge tr(C) / d_in)^-1; W itself where y = W x. fp64."""
        W = W.double()
        missing = (self.yx - W @ self.xx) / self.n
        return W + torch.linalg.solve(self.second(ridge), missing, left=False)


def factor(W: Tensor, C: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of that rank for which E|W x - B A x|^2 is least, where E[x x^T] = C; fp64.

    With U the first eigenvectors of E[y y^T] = W C W^T, B A = U U^T W: what a truncated SVD of
    W C^(1/2) gives, without C^(-1/2), so that C may be singular. Rank-r numbers are uncorrelated;
    A's and B's columns share the singular values evenly.
    """
    W, C = W.double(), C.double()
    tall = len(W) > W.shape[1]
    Q, R = torch.linalg.qr(W) if tall else (None, W)  # then the smaller side has eigenvectors
    values, vectors = torch.linalg.eigh(R @ C @ R.t())
    U = vectors[:, -rank:].flip(1)
    singular = values[-rank:].flip(0).clamp(min=0).sqrt()
    root = singular.clamp(min=1e-6 * float(singular[0]) + TINY).sqrt()
    A, B = (U.t() @ R) / root[:, None], U * root
    return A, B if Q is None else Q @ B


def spread(A: Tensor, B: Tensor, C: Tensor, size: float, key: str) -> tuple[Tensor, Tensor]:
    """The same product A and B, but with SiLU's slope at zero, 1/2, taken into account, and each
    rank-r number of root mean square `size`.

    A random rotation, seeded by `key`, gives every number a share of each direction: then a
    least-squares B finds what SiLU adds (an even function of z) in others with the other sign.
    """
    generator = torch.Generator().manual_seed(seed_of(key))
    random = torch.randn(len(A), len(A), generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(random)[0].to(A)
    A, B = rotation @ A, B @ rotation.t()
    rms = ((A @ C) * A).sum(1).clamp(min=TINY).sqrt()
    return A * (size / rms)[:, None], 2 * B * (rms / size)


def bottleneck(x: Tensor, A: Tensor, B: Tensor, silu: bool) -> Tensor:
    """B s(A x): x (..., d_in) -> (..., d_out)."""
    z = F.linear(x, A)
    return F.linear(F.silu(z) if silu else z, B)


@dataclass(frozen=True)
class Fit:
    """How linears become bottlenecks.

    ranks: of each projection. silu: on the bottleneck. gate_silu: on SwiGLU's gate. size: see
    `spread`.
    """

    ranks: Mapping[str, int]
    silu: bool
    gate_silu: bool
    size: float = SIZE

    @classmethod
    def of(cls, config: Config) -> "Fit":
        """For the method's bottlenecks.

        Raises:
            UserError: it has none, or other weights beside them.
        """
        method = config.method
        if not isinstance(method, BottleneckOptions):
            raise UserError(f"method={method.name}: a dense model becomes one of bottlenecks only")
        if method.folded != method:
            raise UserError(
                f"method={method.name}: a dense model becomes bottlenecks without anything beside "
                "them: leave the other options of the method out"
            )
        ranks = {name: int(rank) for name, rank in method.ranks_of(config.model).items()}
        return cls(ranks, *method.silus(config.model))

    def bottlenecks(
        self, pairs: Pairs, weights: Mapping[str, Tensor], key: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of each weight (d_out, d_in), fp32, for y = W x. pairs: x, and the y of all,
        side by side (n, sum of d_out); read once, with SiLU twice. key: see `spread`."""
        moments = Moments(pairs())
        C, found = moments.second(), {}
        rows = [len(W) for W in weights.values()]
        fitted = moments.fitted(torch.cat(list(weights.values()))).split(rows)
        for name, W in zip(weights, fitted, strict=True):
            A, B = factor(W, C, self.ranks[name])
            if self.silu:
                A, B = spread(A, B, C, self.size, f"{key}.{name}")
            found[name] = A.float(), B.float()
        if self.silu:
            refit(pairs, found)
        return found


def refit(pairs: Pairs, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Give each B the least-squares fit of its y to silu(A x), in place. pairs: as there."""
    rows = [len(B) for _, B in factors.values()]
    moments: dict[str, Moments] = {}
    for x, y in pairs():
        for (name, (A, _)), target in zip(factors.items(), y.split(rows, dim=-1), strict=True):
            moments.setdefault(name, Moments()).add(F.silu(F.linear(x, A)), target)
    for name, (A, B) in factors.items():
        factors[name] = A, moments[name].fitted(B).float()


@dataclass
class Passage:
    """A batch on its way: x_dense and x_low, the streams (B, T, D) of both models before the next
    half of a block."""

    x_dense: Tensor
    x_low: Tensor
    context: AttentionContext


def convert_attention(
    dense: Block, low: Block, passages: list[Passage], fit: Fit, name: str
) -> None:
    """q, k, v and then o; the passages come out with both attentions' outputs added."""

    def projected() -> Iterator[tuple[Tensor, Tensor]]:
        for p in passages:
            y = dense.attention.qkv(dense.attention_norm(p.x_dense))
            yield rows(low.attention_norm(p.x_low)), rows(torch.cat(y, dim=-1))

    qkv = weights_of(dense.attention.qkv)
    assign(low.attention.qkv, fit.bottlenecks(projected, qkv, f"{name}.qkv"))

    attended = [
        (input_of_out(dense, p.x_dense, p.context), input_of_out(low, p.x_low, p.context))
        for p in passages
    ]
    for p, (x, _) in zip(passages, attended, strict=True):
        (p.x_dense,) = dense.attention.out(x, p.x_dense)

    def added() -> Iterator[tuple[Tensor, Tensor]]:
        for p, (_, x) in zip(passages, attended, strict=True):
            yield rows(x), rows(p.x_dense - p.x_low)

    out = weights_of(dense.attention.out)
    assign(low.attention.out, fit.bottlenecks(added, out, f"{name}.out"))
    for p, (_, x) in zip(passages, attended, strict=True):
        (p.x_low,) = low.attention.out(x, p.x_low)


def convert_mlp(dense: Block, low: Block, passages: list[Passage], fit: Fit, name: str) -> None:
    """Gate and up, and then down; the passages come out after the block."""
    mlp = cast(MLP, dense.mlp)
    gate_up, down = weights_of(mlp.gate_up), weights_of(mlp.down)
    if not fit.gate_silu:
        gate_up["gate"] = gate_up["gate"] / 2  # SiLU's slope, where the data say nothing

    def projected() -> Iterator[tuple[Tensor, Tensor]]:
        for p in passages:
            gate, up = mlp.gate_up(dense.mlp_norm(p.x_dense))
            gate = gate if fit.gate_silu else F.silu(gate)
            yield rows(low.mlp_norm(p.x_low)), rows(torch.cat([gate, up], dim=-1))

    found = fit.bottlenecks(projected, gate_up, name)
    assign(low.mlp, found)
    for p in passages:
        p.x_dense = dense.feed_forward(p.x_dense)

    def added() -> Iterator[tuple[Tensor, Tensor]]:
        for p in passages:
            x = low.mlp_norm(p.x_low)
            gate, up = (bottleneck(x, *found[part], fit.silu) for part in ("gate", "up"))
            middle = (F.silu(gate) if fit.gate_silu else gate) * up
            yield rows(middle), rows(p.x_dense - p.x_low)

    assign(low.mlp, fit.bottlenecks(added, down, name))
    for p in passages:
        p.x_low = low.feed_forward(p.x_low)


def input_of_out(block: Block, x_BTD: Tensor, context: AttentionContext) -> Tensor:
    """What attention's last projection reads, (B, T, D)."""
    caught: list[Tensor] = []
    hook = block.attention.out.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        block.attend(x_BTD, context)
    finally:
        hook.remove()
    return caught[0]


def rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def weights_of(linears: nn.Module) -> dict[str, Tensor]:
    """Of dense projections of one input, by name."""
    return dict(linears.named_parameters())


def assign(module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, (A, B) in factors.items():
        module.get_parameter(f"{name}_A").copy_(A)
        module.get_parameter(f"{name}_B").copy_(B)


def empty_model(config: Config, device: torch.device) -> Llama:
    """A config's model in fp32, which flash-attn does not take, without padding, begun as a run of
    it."""
    config = replace(
        config,
        kernels="torch",
        model=replace(config.model, attention="sdpa"),
        train=replace(config.train, precision="fp32", compile=False),
    )
    model = build_model(config, build_method(config, device), device)
    remove_padding(model)
    model.to_empty(device=device)
    initialise(model, config.seed)
    return model.eval().requires_grad_(False)


def sample(tokens: TokenDataset, config: Config, count: int, documents: bool) -> list[Batch]:
    """Batches of about so many tokens from all over a split, or of all that it has; documents:
    whether those of a row are kept apart.

    Raises:
        UserError: it has not one sequence.
    """
    length, packing = config.train.sequence_length, config.data.packing
    check_predictions(tokens, packing=packing, sequence_length=length)
    sequences = count_samples(tokens, packing, length)
    size = min(sequences, max(1, BATCH_TOKENS // length))
    batches = min(sequences // size, math.ceil(count / (size * length)))
    loader = BatchLoader(
        tokens,
        sequence_length=length,
        batch_size=batches * size,
        micro_batch_size=size,
        rank=0,
        world_size=1,
        seed=config.seed + 1,  # other sequences than training begins with
        packing=packing,
        with_documents=documents,
    )
    try:
        return loader.next()
    finally:
        loader.close()


@torch.no_grad()
def convert(
    dense: Llama,
    low: Llama,
    batches: Iterable[Batch],
    fit: Fit,
    show: Callable[[int], None] = lambda blocks: None,
) -> None:
    """Give `low`, a model of bottlenecks without padding, weights with which it computes nearly
    what `dense` does, block by block: each is fitted to what the dense block says, on what the
    blocks of `low` before it give. `show` is called with the number of blocks done.

    It holds both models, the streams of all batches twice (fp32, 8 bytes a position and feature),
    attention's output twice, and one fit's moments.
    """
    shared = dict(dense.named_parameters())
    for name, weight in low.named_parameters():
        if name in shared:  # embedding, norms, head
            weight.copy_(shared[name])
    passages = []
    for batch in batches:
        x = dense.embedding(batch.inputs)
        context = AttentionContext(rotary_for(dense.rotary, x), dense.make_mask(batch.documents, x))
        passages.append(Passage(x, x, context))
    for i, blocks in enumerate(zip(dense.layers, low.layers, strict=True)):
        theirs, ours = cast(tuple[Block, Block], blocks)
        convert_attention(theirs, ours, passages, fit, f"layers.{i}.attention")
        convert_mlp(theirs, ours, passages, fit, f"layers.{i}.mlp")
        show(i + 1)
