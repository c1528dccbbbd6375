"""The jobs of a sweep (`--multirun`), one after another in this process, each as if alone."""

import gc
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig

from cola_train.commands import quoting
from cola_train.commands.overrides import given_options
from cola_train.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # that a run listens to


@contextmanager
def clean_state() -> Iterator[None]:
    """Undo what a job leaves in its process: variables, signal handlers, memory, compiled graphs.

    Seeds, threads and determinism each job sets itself; the process group stays.
    """
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(environment, handlers)


def _restore(environment: dict[str, str], handlers: dict[signal.Signals, Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.collect()
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()
    if "torch" in sys.modules:
        from cola_train.hardware import reset_peak_memory

        reset_peak_memory()


def one_folder_for_all(overrides: list[str]) -> list[str]:
    """The problem, if the jobs of a sweep with these overrides would share a run's folder."""
    return [
        f"{text}: every job of the sweep would go on with the run of the one before; leave it out, "
        f"or write '{text.rstrip('/')}/${{run_name}}'"
        for text in overrides
        if text.lstrip("+").startswith("run_dir=") and "${" not in text and "," not in text
    ]


class Folders:
    """The run folders of a sweep's jobs, each of which must be its own."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def take(self, run_dir: str) -> None:
        """Raises UserError if an earlier job has it."""
        path = os.path.realpath(os.path.expanduser(run_dir))
        if path in self.taken:
            raise UserError(
                f"run_dir: {run_dir} is the folder of an earlier job of this sweep; let it hold "
                "${run_name}, or leave it out"
            )
        self.taken.add(path)


def swept(given: Iterable[str]) -> dict[str, str]:
    """What the sweep changes, and its values in this job.

    given: the overrides of the command line; what is none of them is of the sweep's own config.
    """
    sweeps: dict[str, bool] = {}  # by name; the last word on an option is the one that counts
    for word in given:
        if (override := quoting.parse(word)) is not None:
            sweeps |= dict.fromkeys(given_options([word]), override.is_sweep_override())
    words = [word.lstrip("+").partition("=") for word in HydraConfig.get().overrides.task]
    return {name: value for name, _, value in sorted(words) if sweeps.get(name, True)}


def job_name(run_name: str, options: Mapping[str, str]) -> str:
    """A run name of its own for each job: the sweep's, and what differs between jobs."""
    words = [f"{name}={value}" for name, value in options.items() if name != "run_name"]
    return f"{run_name}+{suffix(words)}" if words else run_name


def suffix(overrides: list[str]) -> str:
    """Overrides as a part of a name that needs no quotes, in Hydra's grammar or a shell's; others
    have another one: what is left out or cut off is in a hash."""
    words = [word.replace('"', "").replace("=", "-", 1) for word in overrides]
    name = "+".join(re.sub(r"[^\w.-]", "_", word, flags=re.ASCII) for word in words)
    exact = all(re.fullmatch(r"[\w.]+=[\w.-]*", word, re.ASCII) for word in overrides)
    if exact and len(name) <= 120:
        return name
    return f"{name[:111]}-{hashlib.sha256('+'.join(overrides).encode()).hexdigest()[:8]}"
