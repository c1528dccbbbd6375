"""What streams through a model's linears, as sums that take no more memory with more tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from cola_train import distributed
from cola_train.errors import UserError
from cola_train.spectra.gram import Gram, Spectrum

# z, s: of a bottleneck B s(A x), the rank-r vector before and after its activation
Place = Literal["input", "z", "s", "output"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Linear:
    """A linear of a block. rank: of its bottleneck; None: it is dense."""

    layer: int
    projection: str
    d_in: int
    d_out: int
    rank: int | None = None

    @property
    def parameters(self) -> int:
        """Of its weights; as many products are a token's forward pass."""
        return self.with_rank(self.rank)

    def with_rank(self, rank: int | None) -> int:
        """The same at another rank."""
        return self.d_in * self.d_out if rank is None else rank * (self.d_in + self.d_out)


class Key(NamedTuple):
    """What is summed: the activations of a linear at a place."""

    layer: int
    projection: str
    place: Place

    def __str__(self) -> str:
        return f"block {self.layer}, {self.projection}, {self.place}"


@dataclass(frozen=True)
class Measured:
    """A linear, and the spectra at those of the places that it has."""

    linear: Linear
    spectra: dict[Place, Spectrum]


class Recorder:
    """Sums x^T x of all that it is shown.

    A tensor that a block shows twice, as the input of q, k and v, is summed once.
    """

    def __init__(self) -> None:
        self.grams: dict[Key, Gram] = {}
        self.same: dict[Key, Key] = {}  # whose sum a key's is
        self.counted: Tensor | None = None  # (B, T) bool, positions of the batch; None: all
        self.positions = 0  # of this process
        self.unclear: set[Key] = set()  # which of their rows are padding, nobody knows
        self._layer = -1
        self._shown: list[tuple[Tensor, int, Key]] = []  # of the block that runs

    def next_batch(self, counted: Tensor) -> None:
        """counted: (B, T) bool, which of the next batch's positions count."""
        self.positions += int(counted.sum())
        self.counted = None if bool(counted.all()) else counted
        self._layer, self._shown = -1, []

    @torch.no_grad()
    def see(self, key: Key, x: Tensor) -> None:
        """x: (..., W), a row for each position."""
        if key.layer != self._layer:
            self._layer, self._shown = key.layer, []
        for shown, version, other in self._shown:
            if shown is x and version == x._version:  # nothing has changed it in place since
                self.same[key] = other
                return
        self._shown.append((x, x._version, key))
        self.same[key] = key
        if key not in self.grams:
            self.grams[key] = Gram(x.shape[-1], x.device)
        rows = x.flatten(0, -2)
        if self.counted is not None and len(rows) != self.counted.numel():
            self.unclear.add(key)  # one process alone must not end here
        else:
            self.grams[key].add(rows if self.counted is None else rows[self.counted.flatten()])

    def spectra(self, linears: Sequence[Linear], alpha: float) -> list[Measured]:
        """Of all processes' rows, on every process; every process calls. The sums are of no use
        afterwards.

        Raises:
            UserError: an activation was not finite; a linear saw other rows than one for each
                position, and some positions did not count.
        """
        found = self._singular_values()
        if self.unclear:
            raise UserError(
                f"{min(self.unclear)}: its rows are not those of the positions, so padding "
                "cannot be told; use data.packing=packed, whose rows are full"
            )
        wrong = [str(key) for key, values in found.items() if values is None]
        if wrong:
            raise UserError(
                f"{wrong[0]}: its activations are not finite"
                + (f", nor are those of {len(wrong) - 1} more" if wrong[1:] else "")
                + ": the model has diverged (take an earlier checkpoint), or needs precision=fp32"
            )
        spectra = {key: Spectrum.of(v, alpha) for key, v in found.items() if v is not None}
        measured = []
        for linear in linears:
            keys = {place: Key(linear.layer, linear.projection, place) for place in PLACES}
            of = {p: spectra[self.same[k]] for p, k in keys.items() if k in self.same}
            if of:
                measured.append(Measured(linear, of))
        return measured

    def _singular_values(self) -> dict[Key, Tensor | None]:
        """Each sum is reduced once, to the process that decomposes it."""
        world, rank = distributed.world_size(), distributed.rank()
        if world == 1:
            return {key: gram.singular_values() for key, gram in self._taken()}
        everyones: list[tuple[dict[Key, int], dict[Key, Key], set[Key]]] = [({}, {}, set())] * world
        widths = {key: len(gram.sum) for key, gram in self.grams.items()}
        dist.all_gather_object(everyones, (widths, self.same, self.unclear))
        for widths_there, same, unclear in everyones:  # an expert may have no token of a process
            self.same = {**same, **self.same}
            self.unclear |= unclear
            for key, width in widths_there.items():
                self.grams.setdefault(key, Gram(width, self._device()))
        mine: dict[Key, Gram] = {}
        for number, (key, gram) in enumerate(self._taken()):
            dist.reduce(gram.sum, dst=number % world)
            if number % world == rank:
                mine[key] = gram
        parts: list[dict[Key, Tensor | None]] = [{}] * world
        dist.all_gather_object(parts, {key: gram.singular_values() for key, gram in mine.items()})
        return {key: values for part in parts for key, values in part.items()}

    def _device(self) -> torch.device:
        return next(iter(self.grams.values())).sum.device

    def _taken(self) -> Iterator[tuple[Key, Gram]]:
        """The sums, of which none stays here."""
        for key in sorted(self.grams):
            yield key, self.grams.pop(key)
