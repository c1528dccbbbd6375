"""`cola-compare WORDS`, the runs of this machine as forks of it: they start at once. It asks SLURM
every second.

The first argument is a file to write this process's number into; its process group has all runs.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cola_train.commands import compare
from cola_train.commands.cli import run_app
from cola_train.compare import slurm
from cola_train.compare.running import SIGNALS, Local
from cola_train.train import train


@dataclass
class Fork:
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send_signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)


def start(words: Sequence[str], log: Path, _: str | None) -> Fork:
    pid = os.fork()
    if pid == 0:
        run(list(words), log)
    return Fork(pid)


def run(words: list[str], log: Path) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code: object = 1
    try:
        run_app(train, words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    Path(sys.argv.pop(1)).write_text(str(os.getpid()))
    slurm.LAST_PAUSE = 1.0
    compare.Local = functools.partial(Local, start=start)  # type: ignore[misc, assignment]
    compare.main()
