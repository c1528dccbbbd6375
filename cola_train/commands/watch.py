"""The command `cola-watch`: runs in a terminal, as they go."""

import contextlib
import signal
import sys
from dataclasses import dataclass
from typing import Annotated

from cola_train.commands.cli import run_own
from cola_train.config.fields import OneOrMore, PathText, Seconds
from cola_train.dashboards.folders import found_runs
from cola_train.dashboards.terminal import watch
from cola_train.errors import EXIT_DONE, UserError


@dataclass(frozen=True)
class WatchOptions:
    """What `cola-watch` takes."""

    run_dir: Annotated[list[PathText], OneOrMore()]  # runs, or folders that hold some
    refresh: Seconds = 2.0  # seconds between two looks
    once: bool = False  # print how they are, and end; so it is where stdout is no terminal


def main() -> None:
    """The command `cola-watch`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-watch ... | head` just ends
    run_own(run, WatchOptions, "cola-watch")


def run(options: WatchOptions) -> int:
    """Show the runs until all are done, or Ctrl-C; returns the exit code.

    Raises:
        UserError: there is no run, or one cannot be read.
    """
    if not options.run_dir:
        raise UserError("run_dir: the list is empty; name a run's folder")
    runs = found_runs(options.run_dir)
    with contextlib.suppress(KeyboardInterrupt):
        watch(runs, options.refresh, options.once or not sys.stdout.isatty())
    return EXIT_DONE


if __name__ == "__main__":
    main()
