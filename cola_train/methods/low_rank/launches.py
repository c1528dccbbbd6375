"""The kernels of a block with DLR's expansion: beside those of plain low rank, passes that expand.

A compiled block may fuse them with what comes after an up-projection; here none is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.methods.bottleneck.launches import AutoEncoderBlock
from cola_train.methods.launches import Launch, Pass


@dataclass(frozen=True)
class ExpandingBlock(AutoEncoderBlock):
    @property
    def fused_middle(self) -> bool:
        """The expansion comes between its products."""
        return False

    def launches(self) -> Iterator[Launch]:
        yield from super().launches()
        n = self.work.tokens
        for projection, (_, width) in self.model.linears.items():
            forward, backward = self.passes(n * self.ranks[projection], n * width)
            yield from forward
            if self.work.policy != "none":
                yield from forward
            yield from backward

    def passes(self, nr: int, nm: int) -> tuple[list[Launch], list[Launch]]:
        """Of z (n, r) and y (n, m), forward and backward."""
        if self.work.compiled:
            return [Pass(2 * nm + nr)], [Pass(nm + 2 * nr)]
        # z is scaled, copied side by side and added; dy's slices are summed, scaled, added to dz
        forward: list[Launch] = [Pass(2 * nr), Pass(nm + nr), Pass(3 * nm)]
        return forward, [Pass(3 * nm), Pass(2 * nr), Pass(3 * nr)]
