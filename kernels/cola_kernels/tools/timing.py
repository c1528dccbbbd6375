"""How long things take on a GPU, by its own clock."""

from collections.abc import Callable, Mapping

import torch

# What is to be timed, made ready anew for each round: only the inner call is timed.
Subject = Callable[[], Callable[[], object]]

FLUSH_BYTES = 2**28  # more than any GPU's L2 cache
HEAD_START_CYCLES = 2_000_000  # about 1 ms


def gpu_seconds(
    subjects: Mapping[str, Subject], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds that each subject keeps the GPU busy, in `rounds` rounds of one call each.

    Before each call the L2 cache is overwritten and the GPU is given a millisecond of idling to do,
    during which Python enqueues the call: its own time does not count, as it does not in
    training, where the CPU runs ahead. Every other round runs backwards; `warmup` rounds before
    them are not counted.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {s: [] for s in subjects}
    for number in range(warmup + rounds):
        for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
            timed = subjects[name]()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(HEAD_START_CYCLES)
            start.record()
            timed()
            end.record()
            torch.cuda.synchronize()  # or the head start would be spent on the queue
            if number >= warmup:
                events[name].append((start, end))
    return {
        name: [start.elapsed_time(end) / 1e3 for start, end in pairs]
        for name, pairs in events.items()
    }
