"""What an extra forward pass shows of each block: ranks, dead and saturated directions, logits.

Shapes: B sequences, T positions, D = d_model, H heads, K = head width, r the bottleneck's rank, N
positions that have a target.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.data.loader import Batch
from cola_train.health import Figures
from cola_train.model.context import allowed_pairs
from cola_train.model.loss import IGNORE_INDEX
from cola_train.model.tap import Joined, observing

DEAD = 0.01  # of the bottleneck's rms
OPEN = math.log(99)  # beyond +-4.6 SiLU's gate, sigmoid(z), is within 0.01 of 0 or 1
SATURATED = 0.95  # of the positions are beyond
LOGITS = 1 << 24  # that exist at a time


@dataclass
class Bottleneck:
    """Sums over the positions seen, of one projection in one block."""

    silu: bool
    positions: int = 0
    z: Tensor | float = 0.0  # z^T z, (r, r)
    s: Tensor | float = 0.0  # of s(z)
    beyond: Tensor | float = 0.0  # positions with |z| > OPEN, (r,)

    def add(self, z: Tensor) -> None:
        """z: (N, r), fp32."""
        self.positions += len(z)
        self.z = self.z + z.t() @ z
        if self.silu:
            s = F.silu(z)
            self.s = self.s + s.t() @ s
            self.beyond = self.beyond + (z.abs() > OPEN).sum(0)

    def figures(self, alpha: float) -> dict[str, Tensor | float]:
        """fp32 scalars."""
        if not self.positions:
            return dict.fromkeys(names_of(self.silu), math.nan)
        assert isinstance(self.z, Tensor)
        found: dict[str, Tensor | float] = {"z_rank": effective_rank(self.z, alpha)}
        after = self.z
        if self.silu:
            assert isinstance(self.s, Tensor) and isinstance(self.beyond, Tensor)
            found["s_rank"] = effective_rank(self.s, alpha)
            found["saturated"] = (self.beyond > SATURATED * self.positions).float().mean()
            after = self.s
        squares = after.diagonal()
        found["dead"] = (squares <= DEAD**2 * squares.mean()).float().mean()
        return found


def names_of(silu: bool) -> list[str]:
    """Of a bottleneck's figures."""
    return ["z_rank", "s_rank", "saturated", "dead"] if silu else ["z_rank", "dead"]


def effective_rank(moment: Tensor, alpha: float) -> Tensor:
    """The least k whose k largest squared singular values hold `alpha` of the sum of all; 0 of a
    matrix that is 0.

    moment: x^T x, (r, r), fp32. Source: arXiv 2502.10940, section 3.

    Returns:
        An fp32 scalar; nan where the matrix is not finite.
    """
    finite = moment.isfinite().all()
    squares = torch.linalg.eigvalsh(torch.where(finite, moment, 0.0)).flip(0).clamp(min=0)
    held = squares.double().cumsum(0)
    k = ((held < alpha * held[-1]).sum() + 1) * (held[-1] > 0)
    return torch.where(finite, k.float(), torch.nan)


@dataclass
class Activations:
    """An observer of forward passes; it computes figures of the blocks that are `mine` alone."""

    alpha: float
    mine: Callable[[int], bool]
    block: int = -1  # the one that runs
    keys: dict[tuple[str, str, int], None] = field(default_factory=dict)  # of all blocks' figures
    bottlenecks: dict[tuple[str, int], Bottleneck] = field(default_factory=dict)
    squares: dict[int, list[Tensor]] = field(default_factory=dict)  # means, of the stream
    logits: dict[int, list[Tensor]] = field(default_factory=dict)

    def look(self, module: nn.Module, batches: Sequence[Batch], compiled: bool = False) -> None:
        """Run the model over micro-batches on its device. All processes call it together.

        compiled: its blocks are; they run as they were before, as a compiled graph shows nothing.
        """
        # else it would load all of the compiler
        usual = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with torch.no_grad(), observing(self.see), usual:
            for batch in batches:
                self.batch, self.block = batch, -1
                self.counted = batch.targets != IGNORE_INDEX
                # no loss, and the logits of one position: the head is not looked at
                module(batch.inputs, None, batch.documents, None, 1)

    def see(self, name: str, x: Tensor, joined: Joined | None) -> None:
        self.block += name == "residual"
        if name == "z":
            assert joined is not None
            for projection in joined.ranks:
                for figure in names_of(joined.silu):
                    self.keys[figure, projection, self.block] = None
        if not self.mine(self.block):
            return
        if name == "residual":
            square = x[self.counted].float().square().mean()
            self.squares.setdefault(self.block, []).append(square)
        elif name == "q":
            self.q = x[:1]
        elif name == "k":
            most = max_logit(self.q[0], x[0], self.batch.documents, self.counted[0])
            self.logits.setdefault(self.block, []).append(most)
        elif joined is not None:
            for projection, z in joined.parts(x).items():
                new = Bottleneck(joined.silu)
                known = self.bottlenecks.setdefault((projection, self.block), new)
                known.add(z[self.counted].float())

    def figures(self) -> Figures:
        """Of this process's blocks; of others' 0."""
        found: dict[tuple[str, str, int], Tensor | float] = dict.fromkeys(self.keys, 0.0)
        for (projection, block), bottleneck in self.bottlenecks.items():
            for figure, value in bottleneck.figures(self.alpha).items():
                found[figure, projection, block] = value
        for block in range(self.block + 1):
            squares, logits = self.squares.get(block), self.logits.get(block)
            found["residual_rms", "", block] = torch.stack(squares).mean().sqrt() if squares else 0
            found["max_logit", "", block] = torch.stack(logits).max() if logits else 0
        return {key: float(value) for key, value in found.items()}


def max_logit(q_THK: Tensor, k_THK: Tensor, documents_BT: Tensor | None, seen_T: Tensor) -> Tensor:
    """The largest q k^T / sqrt(K) of a sequence, over what positions with a target may see; an
    fp32 scalar. documents_BT: of its batch, whose first it is; -inf if no position has a target."""
    T, H, K = q_THK.shape
    if documents_BT is None:
        documents_BT = torch.zeros(1, T, dtype=torch.int32, device=q_THK.device)
    allowed_TT = allowed_pairs(documents_BT[:1])[0, 0] & seen_T[:, None]
    q_HTK, k_HKT = q_THK.transpose(0, 1), k_THK.permute(1, 2, 0)
    found = []
    for rows in range(0, T, step := max(1, LOGITS // (H * T))):
        logits_HTT = (q_HTK[:, rows : rows + step] @ k_HKT).float() / math.sqrt(K)
        found.append(logits_HTT.masked_fill(~allowed_TT[rows : rows + step], -torch.inf).max())
    return torch.stack(found).max()
