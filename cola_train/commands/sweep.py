"""The jobs of a sweep (`--multirun`), one after another in this process, each as if alone."""

import gc
import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig

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


def job_name(run_name: str) -> str:
    """A run name of its own for each job: the sweep's, and the job's overrides."""
    overrides = ",".join(sorted(word.lstrip("+") for word in HydraConfig.get().overrides.task))
    if not overrides:
        return run_name
    suffix = re.sub(r"[^\w.,=+-]", "_", overrides)
    if len(suffix) > 120:  # the part cut off may be what differs
        suffix = f"{suffix[:111]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return f"{run_name}-{suffix}"
