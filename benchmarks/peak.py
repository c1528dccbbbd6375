"""The most memory that a CPU process' tensors held at once, to the byte.

Resident memory has the interpreter, libraries and the allocator's slack in it, and its peak never
goes down. torch's profiler reports every allocation and free of CPU tensors instead, those of
storages that sharding engines resize among them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.collectives import Collectives

MARK = "peak_memory: "


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
            stack.enter_context(Collectives(settle=True))
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
