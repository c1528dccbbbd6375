"""The command `cola-dashboard`: runs on one HTML page, in a file or on this machine's address."""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cola_train.commands import dashboard_wandb
from cola_train.commands.cli import run_own
from cola_train.config.fields import OneOrMore, PathText, Range, Seconds
from cola_train.dashboards.folders import found_runs
from cola_train.dashboards.page import Page, goes_on
from cola_train.dashboards.server import Server
from cola_train.errors import EXIT_DONE, UserError
from cola_train.files import write_text
from cola_train.progress import say

OUT, PORT, REFRESH = "dashboard.html", 8123, 10.0  # where nothing else is said


@dataclass(frozen=True)
class DashboardOptions:
    """What `cola-dashboard` takes."""

    run_dir: Annotated[list[PathText], OneOrMore()]  # runs, or folders that hold some
    out: PathText | None = None  # the page's file; null: dashboard.html, unless serve=true
    serve: bool = False  # on this machine's own address instead, until Ctrl-C
    port: Annotated[int, Range(0, 65535)] | None = None  # of serve=true; null: 8123; 0: a free one
    # seconds between two looks at the runs; null: 10 with serve=true, else one look and no more
    refresh: Seconds | None = None
    points: Annotated[int, Range(100, 10**6)] = 10000  # of a curve, at most; extremes are kept


def main() -> None:
    """The command `cola-dashboard`; `cola-dashboard wandb` is another."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-dashboard ... | head` just ends
    if sys.argv[1:2] == ["wandb"]:
        del sys.argv[1]
        dashboard_wandb.main()
    run_own(run, DashboardOptions, "cola-dashboard")


def run(options: DashboardOptions) -> int:
    """Make the page, or serve it; returns the exit code.

    Raises:
        UserError: there is no run, an option has no effect, or the page cannot be written.
    """
    if options.serve and options.out is not None:
        raise UserError("out: of a page in a file, and this is serve=true; leave one of them out")
    if not options.serve and options.port is not None:
        raise UserError("port: of serve=true; say that too, or leave it out")
    if not options.run_dir:
        raise UserError("run_dir: the list is empty; name a run's folder")
    runs = found_runs(options.run_dir)
    if options.serve:
        serve(options, runs)
    else:
        write(options, runs)
    return EXIT_DONE


def serve(options: DashboardOptions, runs: list[Path]) -> None:
    """Until Ctrl-C."""
    page = Page(runs, options.points, options.refresh or REFRESH, served=True)
    page.data()  # what cannot be read is said at once
    port = PORT if options.port is None else options.port
    with Server(page, port) as server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        say(f"{len(runs)} runs; Ctrl-C ends it")
        server.serve_forever()


def write(options: DashboardOptions, runs: list[Path]) -> None:
    """Once, or every `refresh` seconds until no run goes on, or Ctrl-C."""
    page = Page(runs, options.points, options.refresh, served=False)
    path = Path(options.out or OUT)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            data = page.data()
            last = options.refresh is None or not goes_on(data)
            if last:
                data["refresh"] = None
            html = page.html(data)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, html)
            except OSError as error:
                raise UserError(f"out: cannot write {path}: {error.strerror}") from error
            if last:
                break
            assert options.refresh is not None
            time.sleep(options.refresh)
    print(os.fspath(path))


if __name__ == "__main__":
    main()
