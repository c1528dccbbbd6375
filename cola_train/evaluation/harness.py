"""lm-evaluation-harness: its tasks by name, and running them on a model of ours.

The harness is an extra and takes seconds to import: it is imported where tasks are asked for.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cola_train.errors import UserError

EXTRA = "pip install 'cola_train[evaluation]'"
FILES = (".yaml", ".yml")
SEED = 1234  # the harness's own, by which it chooses examples
BOOTSTRAP = 1000  # drawings for the error of a metric that has no formula for it


def task_problems(names: Sequence[str], option: str) -> list[str]:
    """What is wrong with names of tasks, as far as it shows without their data. option: what they
    are the value of."""
    if not names:
        return []
    if find_spec("lm_eval") is None:
        return [f"{option}: needs lm-evaluation-harness, which is not installed; `{EXTRA}`"]
    problems = [f"{option}: {n} is given twice" for n in {*names} if names.count(n) > 1]
    files = [name for name in names if name.endswith(FILES)]
    problems += [f"{option}: {name}: no such file" for name in files if not Path(name).is_file()]
    if others := [name for name in names if name not in files]:
        known = _manager().all_tasks
        for name in others:
            if name not in known:
                near = [f"`{each}`" for each in get_close_matches(name, known, n=3)]
                hint = (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else "`lm-eval ls tasks` lists them"
                )
                problems.append(f"{option}: there is no task `{name}`; {hint}")
    return problems


def load_tasks(names: Sequence[str], option: str) -> dict[str, Any]:
    """The tasks and groups of these names or YAML files, as the harness holds them, with their
    data, which may be downloaded.

    Raises:
        UserError: a task cannot be read, or is not one of text alone.
    """
    try:
        loaded: dict[str, Any] = _manager().load(list(names))
    except Exception as error:  # the harness's, those of datasets, the network's
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{option}: cannot be loaded ({why}); mend the task, or leave it out. Data of tasks "
            "are downloaded once: without a network, copy the cache of Hugging Face here"
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{option}: {name} runs code that the model writes; leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"{option}: {name} shows more than text; leave it out")
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
    return loaded


def run_tasks(
    model: Any, loaded: Mapping[str, Any], limit: int | None, errors: bool
) -> dict[str, dict[str, float]]:
    """Task or group -> metric -> value.

    model: a `lm_eval.api.model.LM`. limit: examples of each task. errors: of metrics, as
    `acc_stderr`, too.
    """
    from lm_eval import evaluate

    for task in loaded["tasks"].values():  # the same examples each time
        task.set_fewshot_seed(SEED)
    with _own_random_numbers(), _without_bars():
        results = evaluate(
            model,
            loaded,
            limit=limit,
            log_samples=False,
            bootstrap_iters=BOOTSTRAP if errors else 0,
        )
    assert results is not None  # it is the main process that asks
    found = {**results["results"], **results.get("groups", {})}
    return {name: dict(_numbers(metrics)) for name, metrics in found.items()}


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`acc,none` is acc; of another filter, `exact_match,strict` is exact_match.strict."""
    for key, value in metrics.items():
        metric, _, kind = key.partition(",")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind and number and not math.isnan(value):
            yield metric if key.endswith(",none") else f"{metric}.{kind}", float(value)


def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Tasks that draw do so by the same numbers each time, and a run's go on as if they had not."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Its own bars would write into a log, and over another bar on a terminal."""
    from lm_eval.api import task

    bar: Callable[..., Any] = task.tqdm
    task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        task.tqdm = bar
