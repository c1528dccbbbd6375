"""The most memory that a CPU process' tensors held at once, to the byte.

Resident memory has the interpreter, libraries and the allocator's slack in it, and its peak never
goes down. torch's profiler reports every allocation and free of CPU tensors instead, those of
storages that sharding engines resize among them.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

MARK = "peak_memory: "
SETTLE_SECONDS = 0.002  # until gloo's thread has let go of a finished collective


class PeakMemory:
    """Bytes of tensors made inside the `with` block, by named phase; filled when it ends.

    with PeakMemory() as memory:
        with memory.phase("step"): ...
    memory.peak["step"], memory.left["step"]
    """

    def __init__(self) -> None:
        self.peak: dict[str, int] = {}  # most bytes held during the phase
        self.left: dict[str, int] = {}  # bytes held at its end
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with record_function(MARK + name):
            yield

    def __enter__(self) -> "PeakMemory":
        with ExitStack() as stack:
            stack.enter_context(self._profile)
            stack.enter_context(_SettledCollectives())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        results = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        assert results is not None
        changes, phases = [], []
        events: list[Any] = list(results.events())
        for event in events:
            if event.name() == "[memory]":
                changes.append((event.start_ns(), event.nbytes()))
            elif event.name().startswith(MARK):
                name = event.name().removeprefix(MARK)
                phases.append((event.start_ns(), event.end_ns(), name))
        changes.sort(key=lambda change: change[0])
        times = [at for at, _ in changes]
        held = list(accumulate((nbytes for _, nbytes in changes), initial=0))
        for start, end, name in phases:
            first, last = bisect_left(times, start), bisect_right(times, end)
            self.peak[name] = max(held[first : last + 1])
            self.left[name] = held[last]


class _SettledCollectives(TorchDispatchMode):
    """Ends each collective before the next op, in this thread.

    What gloo's threads free is not reported: they must not be the last to hold a tensor.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            for work in torch.utils._pytree.tree_leaves(out):
                if hasattr(work, "wait") and not isinstance(work, torch.Tensor):
                    work.wait()
            time.sleep(SETTLE_SECONDS)
        return out
