"""The jobs of a sweep (`--multirun`), one after another in this process, each as if alone."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # that a run listens to


@contextmanager
def clean_state() -> Iterator[None]:
    """Undo what a job leaves in its process: variables, signal handlers, memory, compiled graphs.

    Seeds, threads and determinism each job sets itself; the process group stays.
    """
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
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


def job_name() -> str:
    """What tells this job from the others of its sweep: its overrides, sorted."""
    overrides = (word.lstrip("+") for word in HydraConfig.get().overrides.task)
    return ",".join(sorted(overrides))
