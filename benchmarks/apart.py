"""Steps that run in a process of their own, when the one who times them says so."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from cola_train import distributed, hardware

Step = Callable[[], object]
Build = Callable[..., Mapping[str, Step]]

PEAK_MEMORY = "peak memory"  # a request; the others are names of steps


class Apart:
    """A process that holds the steps `build(*arguments)` makes; see `apart`."""

    def __init__(self, build: Build, arguments: tuple[Any, ...]) -> None:
        spawn = multiprocessing.get_context("spawn")  # inherits no memory and no settings
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def steps(self) -> dict[str, Step]:
        """The steps by name, once they are built: each runs there and returns when it is done."""
        names: list[str] = self._receive()
        return {name: lambda name=name: self._ask(name) for name in names}  # type: ignore[misc]

    def peak_memory(self) -> int:
        """Most bytes it has held: resident on a CPU, allocated on a GPU."""
        return int(self._ask(PEAK_MEMORY))

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _ask(self, request: str) -> Any:
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:  # it has printed why
            raise RuntimeError("a process that was to be timed has died") from error


@contextmanager
def apart(build: Build, *arguments: Any) -> Iterator[Apart]:
    """A process for the steps of `build(*arguments)`, for as long as the context lasts.

    `build` is a module's function; it and its arguments are pickled.
    """
    process = Apart(build, arguments)
    try:
        yield process
    finally:
        process.close()


def _serve(connection: Connection, build: Build, arguments: tuple[Any, ...]) -> None:
    try:
        steps = build(*arguments)
        connection.send(list(steps))
        while True:
            request = connection.recv()
            if request == PEAK_MEMORY:
                connection.send(hardware.peak_memory_bytes(distributed.device()))
                continue
            steps[request]()
            synchronize()
            connection.send(None)
    except EOFError:
        distributed.stop()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
