"""Looking at values inside a model while it runs.

What blocks show, in the order in which they compute it: `residual`, the stream as it enters a
block, (B, T, D); `z`, bottlenecks before their activation, (..., r), side by side where projections
share their input; `q` and `k`, (B, T, H, K), as attention multiplies them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from cola_train.config.widths import stored


@dataclass(frozen=True)
class Joined:
    """Bottlenecks that lie side by side. ranks: of each projection, in order; silu: whether the
    activation follows."""

    ranks: Mapping[str, int]
    silu: bool

    def parts(self, z: Tensor) -> dict[str, Tensor]:
        """(..., all of them) -> (..., r) by projection, without padding; views."""
        widths = [int(rank) for rank in self.ranks.values()]
        if sum(widths) != z.shape[-1]:
            widths = [stored(rank) for rank in self.ranks.values()]
        parts = z.split(widths, dim=-1)
        return {
            name: part[..., :rank]
            for (name, rank), part in zip(self.ranks.items(), parts, strict=True)
        }


Observer = Callable[[str, Tensor, Joined | None], None]

_observer: Observer | None = None


def tap(name: str, x: Tensor, joined: Joined | None = None) -> Tensor:
    """x itself; an observer, if one is on, is shown it. joined: what x has, of `z`."""
    if _observer is not None:
        _observer(name, x, joined)
    return x


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show every tapped value to `observer`."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
