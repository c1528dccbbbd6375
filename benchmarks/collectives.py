"""The bytes of every collective that this process really takes part in."""

import os
import time
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SETTLE_SECONDS = 0.004  # until gloo's thread has let go of a finished collective, if it has a core


def settle() -> None:
    """Wait for gloo's threads: longer, as more threads than there are cores wait for one."""
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    time.sleep(SETTLE_SECONDS * max(1.0, waiting))


# Name of an op of c10d or of _c10d_functional: kind, and the argument with the whole message.
KINDS = {
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "allreduce_": ("all_reduce", 0),
    "alltoall_base_": ("all_to_all", 0),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
    "all_reduce": ("all_reduce", 0),
    "all_reduce_": ("all_reduce", 0),
}


class Collectives(TorchDispatchMode):
    """Counts bytes by kind, as `planning.traffic` does; collectives of `small` bytes or less apart.

    settle: end each one before the next op. What gloo's threads free goes unreported to
        `peak.PeakMemory`, so they must not be the last to hold a tensor.
    """

    def __init__(self, small: int = 64, settle: bool = False) -> None:
        super().__init__()
        self.small, self.settle = small, settle
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.small_calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self.count(func._opname, args)
            if self.settle:
                for work in tree_leaves(out):
                    if hasattr(work, "wait") and not isinstance(work, Tensor):
                        work.wait()
                settle()
        return out

    def count(self, name: str, args: Any) -> None:
        if name in ("barrier", "wait_tensor"):
            return
        kind, message = KINDS.get(name, (name, 0))
        size = sum(t.nbytes for t in tree_leaves(args[message]) if isinstance(t, Tensor))
        if size <= self.small:
            self.small_calls[kind] += 1
        else:
            self.bytes[kind] += size
            self.calls[kind] += 1
