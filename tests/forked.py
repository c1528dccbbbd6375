"""Python programs as forks of one process that has imported what most of them import.

torch, what its first optimizer imports and the trainer cost about four processor seconds a
process. A test about the start itself (what is imported, variables that imports read, a launcher,
signals to a process) starts its processes anew, by `helpers.start_python`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path
from traceback import print_exc
from typing import NoReturn
from unittest import mock

# Not the commands' modules, each of which runs as __main__, nor what reads variables when it is
# imported: DeepSpeed, Hugging Face's hub, wandb.
IMPORTED = ["helpers", "torch._dynamo"]
SEARCHED = sys.path[1:]  # in the process that forks; what comes first is the program's own


def run_forks(
    words: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    output: Path,
    errors: Path,
    seconds: float,
) -> list[int | None]:
    """Exit codes of `python WORDS` in one process for each environment, all at the same time.

    A negative number is the signal that ended it, as in `subprocess`; None: it had not ended after
    `seconds`. When one has failed or the time is over, the others are killed.

    words: as Python's: `-m MODULE` or a script, then arguments.
    folder: to run in. output, errors: files, may be one, that they append to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, environments[0]):  # threads, and where modules are found
        forkserver.ensure_running()
    processes = [
        context.Process(target=_run, args=(list(words), dict(variables), folder, output, errors))
        for variables in environments
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    running = processes
    while running and not any(process.exitcode for process in processes):
        if not connection.wait([p.sentinel for p in running], deadline - time.monotonic()):
            break
        running = [process for process in running if process.exitcode is None]
    codes = [process.exitcode for process in processes]
    for process in running:
        process.kill()
        with suppress(ProcessLookupError):  # what it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return codes


def _run(
    words: list[str], environment: dict[str, str], folder: Path, output: Path, errors: Path
) -> NoReturn:
    """In the forked process: become the program."""
    os.setsid()
    for stream, path in ((sys.stdout, output), (sys.stderr, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    code: object = 1
    try:
        if environment["PYTHONPATH"] != os.environ["PYTHONPATH"]:
            raise ValueError("another PYTHONPATH than the first: start it anew")
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        if words[0] == "-m":
            sys.argv, sys.path[:] = words[1:], [str(folder), *SEARCHED]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:] = words, [str(Path(words[0]).parent), *SEARCHED]
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python's end does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)
