"""Ends a run that has stopped advancing, and says which process holds up the others.

Without it a process that hangs leaves its peers waiting in a collective until the process group's
time-out, whose error names a collective but not who did not come.
"""

import faulthandler
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from cola_train import distributed
from cola_train.errors import EXIT_STOPPED_BY_SIGNAL
from cola_train.run.owner import Owner

T = TypeVar("T")

REPORT_SECONDS = 60.0  # for a report to a file system that may be what hangs
PACKAGE = str(Path(__file__).parents[1])
COLLECTIVES = f"{os.sep}torch{os.sep}distributed{os.sep}"
WRAPPERS = {"wrapper", "wait", "_wait", "decorate_context", "inner"}


class Watchdog:
    """A thread that ends this process with 75 when the main thread has not called `advance` for
    `seconds`; None: never. It watches from the first call on.

    Every process of a run has one. Each writes where it is to `logs/hang-<attempt>/` in the run's
    folder; after a moment the first of those that can still say something says it for all.
    """

    def __init__(self, seconds: float | None, owner: Owner) -> None:
        self.seconds, self.owner = seconds, owner
        self.doing = ""
        self.advances = 0
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def advance(self, doing: str) -> None:
        """The main thread is alive; `doing` is what it begins now."""
        self.doing, self.advances = doing, self.advances + 1
        if self.thread is None and self.seconds is not None:
            self.thread = threading.Thread(
                target=self._watch, args=(self.seconds,), name="watchdog", daemon=True
            )
            self.thread.start()

    def each(self, items: Iterable[T], doing: str) -> Iterator[T]:
        """`items`, each of which is an advance."""
        for item in items:
            self.advance(doing)
            yield item

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Watch no more."""
        self.ended.set()

    def _watch(self, seconds: float) -> None:
        # Counting looks rather than reading a clock, it takes no suspended machine for a hang.
        interval = min(seconds / 4, 5.0)
        seen, looks = self.advances, 0
        while not self.ended.wait(interval):
            looks = looks + 1 if self.advances == seen else 0
            seen = self.advances
            if looks * interval >= seconds:
                teller = threading.Thread(target=self._tell, args=(seconds, interval), daemon=True)
                teller.start()
                teller.join(REPORT_SECONDS)
                os._exit(EXIT_STOPPED_BY_SIGNAL)

    def _tell(self, seconds: float, interval: float) -> None:
        folder = self.owner.run_dir / "logs" / f"hang-{self.owner.claim['attempt']:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        rank = distributed.rank()
        with (folder / f"rank-{rank:05d}.stacks.txt").open("w") as file:
            faulthandler.dump_traceback(file)
        report = {"rank": rank, "doing": self.doing, **_place()}
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(report))
        self.ended.wait(2 * interval + 1)  # those who wait for us began to a moment later
        reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
        if rank == reports[0]["rank"]:
            message = describe(reports, distributed.world_size())
            self.owner.report("hung", EXIT_STOPPED_BY_SIGNAL, message)
            print(
                f"error: nothing has advanced for {seconds:g} s (train.hang_seconds). {message}. "
                f"Stacks: {folder}. Ending; start again from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        else:
            self.ended.wait(2 * interval + 1)  # our end would end the one that speaks


def describe(reports: list[dict[str, Any]], processes: int) -> str:
    """Who holds up whom: suspects first, then where each process is."""
    silent = sorted(set(range(processes)) - {report["rank"] for report in reports})
    outside = [report["rank"] for report in reports if report["collective"] is None]
    places = Counter(_words(report) for report in reports)
    rarest = places.most_common()[-1][0]
    if silent:
        suspects = silent
    elif outside and len(outside) < len(reports):
        suspects = outside  # the others wait for them
    else:  # most wait in the same place
        suspects = [report["rank"] for report in reports if _words(report) == rarest]
    lines = [f"rank {', '.join(map(str, suspects))} hangs"]
    lines += [f"rank {rank}: no answer, stopped or gone" for rank in silent]
    for place in places:
        ranks = [str(report["rank"]) for report in reports if _words(report) == place]
        lines.append(f"rank {', '.join(ranks)}: {place}")
    return "; ".join(lines)


def _words(report: dict[str, Any]) -> str:
    collective = report["collective"]
    return (
        f"{report['doing']}, {f'collective {collective}' if collective else 'no collective'}, "
        f"at {report['where']}"
    )


def _place() -> dict[str, str | None]:
    """Where the main thread is in our code, and in which collective any thread is."""
    frames = sys._current_frames()
    main = frames.pop(threading.main_thread().ident or 0)
    others = [frames[t.ident] for t in threading.enumerate() if t.ident in frames]
    collectives = [name for frame in (main, *others) if (name := _collective(frame))]
    where = next((f for f in _outwards(main) if f.f_code.co_filename.startswith(PACKAGE)), main)
    return {
        "where": f"{Path(where.f_code.co_filename).name}:{where.f_lineno} in "
        f"{where.f_code.co_name}",
        "collective": next(iter(collectives), None),
    }


def _collective(frame: FrameType) -> str | None:
    """The function of torch.distributed that our code waits in, if any, in this thread."""
    for each in _outwards(frame):
        code = each.f_code
        if code.co_filename.startswith(PACKAGE):
            return None
        if COLLECTIVES in code.co_filename and code.co_name not in WRAPPERS:
            return code.co_name
    return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
