"""Python programs as forks of one process that has imported what most of them import.

torch, what its first optimizer imports and the trainer cost about four processor seconds a
process. A test about the start itself (what is imported, variables that imports read, a launcher,
signals to a process) starts its processes anew, by `helpers.start_python`.
"""

import atexit
import faulthandler
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

from torch.distributed import TCPStore

# Not the commands' modules, each of which runs as __main__, nor what reads variables when it is
# imported: DeepSpeed, Hugging Face's hub, wandb.
IMPORTED = ["helpers", "torch._inductor.compile_fx"]
SEARCHED = sys.path[1:]  # in the process that forks; what comes first is the program's own


def run_forks(
    words: Sequence[str],
    processes: int,
    environment: Mapping[str, str],
    folder: Path,
    output: Path,
    errors: Path,
    seconds: float,
) -> list[int | None]:
    """Exit codes of `python WORDS`; of several processes at the same time, with what torchrun tells
    each of them, if `processes` is not 0.

    A negative number is the signal that ended it, as in `subprocess`; None: it had not ended after
    `seconds`. When one has failed or the time is over, the others are killed.

    words: as Python's: `-m MODULE` or a script, then arguments.
    folder: to run in. output, errors: files, may be one, that they append to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, environment):  # threads, and where modules are found
        forkserver.ensure_running()
    environments = [dict(environment)]
    if processes:  # as under torchrun: the store is in the process that starts the others
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        environments = [
            {
                **environment, "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            for rank in range(processes)
        ]  # fmt: skip
    forks = [
        context.Process(target=_run, args=(list(words), variables, folder, output, errors))
        for variables in environments
    ]
    for fork in forks:
        fork.start()
    deadline = time.monotonic() + seconds
    running = forks
    while running and not any(fork.exitcode for fork in forks):
        if not connection.wait([fork.sentinel for fork in running], deadline - time.monotonic()):
            break
        running = [fork for fork in running if fork.exitcode is None]
    codes = [fork.exitcode for fork in forks]
    for fork in running:
        fork.kill()
        with suppress(ProcessLookupError):  # what it has started
            os.killpg(fork.pid, signal.SIGKILL)
        fork.join()
    return codes


def _run(
    words: list[str], environment: dict[str, str], folder: Path, output: Path, errors: Path
) -> NoReturn:
    """In the forked process: become the program."""
    os.setsid()
    for stream, path in ((sys.stdout, output), (sys.stderr, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    faulthandler.enable()  # a crash below Python leaves where it was, in `errors`
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
