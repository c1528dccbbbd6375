"""Run by methods/test_method_runs.py: 20 steps of every method on this number of processes, one of
them skipped, and what resumes them around an event.

Arguments: the JSON file to write, a folder for checkpoints. Two processes come first: theirs are
the checkpoints that others take. Writes what it saw: method -> figures.
"""

from pathlib import Path
from typing import Any

import torch
import toy_method
from helpers import (
    PERIODS,
    digest,
    load_checkpoint,
    method_values,
    micro_batches,
    refusal,
    save_checkpoint,
    values_config,
    whole_state,
    work,
)

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.engines.base import Engine, StepResult
from cola_train.methods import METHODS
from cola_train.train import build

STEPS, ROWS, EVERY = 20, 4, 5  # EVERY: steps between merges or refreshes
SKIPPED = 8
MOVED, LAST = 11, 14  # the step of the checkpoint that moves; the last one of a resumed run
Values = dict[str, Any]
SHARDINGS: dict[str, Values] = {
    "full": {"name": "fsdp"},
    "replicate": {"name": "fsdp", "sharding": "replicate"},
    "hybrid": {"name": "fsdp", "sharding": "hybrid", "shard_size": 2},
}
ZERO: Values = {"name": "deepspeed", "zero_stage": 2}


def has_events(method: str) -> bool:
    """Whether something happens every few steps; such methods are tried more often."""
    return method in PERIODS


def saved(method: str) -> tuple[int, ...]:
    """Steps whose checkpoints are resumed. A merge comes after step 10; a refresh in step 12, of 10
    good steps before it."""
    return (9, 10, 11, 12) if has_events(method) else (MOVED,)


def places(method: str) -> dict[int, list[str]]:
    """Number of processes -> shardings; the method contract has copies of every method."""
    if has_events(method):
        return {1: ["full"], 2: ["full", "replicate"], 4: ["full", "hybrid"]}
    return {1: ["full"], 2: ["full"], 4: ["hybrid"]}


def config_of(method: str, engine: Values) -> Config:
    return values_config(
        method=method_values(method, EVERY), engine=engine,
        model={"n_layers": 1}, train={"steps": STEPS, "batch_size": ROWS, "micro_batch_size": None},
        optim={"name": "adamw", "lr": 1e-2, "eps": 1e-3},  # as in method_worker.py
    )  # fmt: skip


def zero(method: str) -> Values:
    """DeepSpeed's stage 2; stage 0, where the checks refuse that."""
    refused = refusal(method={"name": method}, engine=ZERO)
    return {**ZERO, "zero_stage": 0} if refused else ZERO


def train(engine: Engine, config: Config, number: int) -> StepResult:
    """Step `number`, from 1, without what comes after it. Two batches, to be learnt by heart."""
    lr = config.method.learning_rate(config, number)
    limit = 0.0 if number == SKIPPED else torch.inf
    return engine.train_step(micro_batches(number % 2, ROWS), lr, max_loss=limit)


def place(folder: Path, processes: int, method: str, number: int) -> Path:
    """Of the checkpoint of step `number`, by so many processes."""
    return folder / str(processes) / method / str(number)


def undisturbed(method: str, sharding: str, folder: Path | None) -> dict[str, Any]:
    """All steps; with checkpoints, if there is a folder for them."""
    config = config_of(method, SHARDINGS[sharding])
    engine = build(config, distributed.device())
    losses, found = [], {}
    for number in range(1, STEPS + 1):
        before = whole_state(engine) if number == SKIPPED else {}
        result = train(engine, config, number)
        if number == SKIPPED:
            after = whole_state(engine)
            found["changed"] = [n for n in before if not torch.equal(before[n], after[n])]
        assert result.skipped == (number == SKIPPED)
        engine.after_step(number)
        losses.append(result.loss)
        if folder and number in saved(method):
            target = place(folder, distributed.world_size(), method, number)
            save_checkpoint(engine, target, number)
        if number == LAST:
            found["state"] = digest(whole_state(engine))
    engine.close()
    return {"losses": losses, **found}


def resumed(method: str, engine_values: Values, folder: Path, processes: int, number: int):
    """Losses of the steps up to LAST, from step `number`'s checkpoint of so many processes; and
    their state."""
    config = config_of(method, engine_values)
    engine = build(config, distributed.device())
    load_checkpoint(engine, place(folder, processes, method, number))
    losses = []
    for following in range(number + 1, LAST + 1):
        losses.append(train(engine, config, following).loss)
        engine.after_step(following)
    found = {"losses": losses, "state": digest(whole_state(engine))}
    engine.close()
    return found


def runs(method: str, folder: Path) -> dict[str, Any]:
    processes = distributed.world_size()
    first, *others = places(method)[processes]
    saves = processes == 2
    found = {first: undisturbed(method, first, folder if saves else None)}
    found |= {sharding: undisturbed(method, sharding, None) for sharding in others}
    if saves:
        of_full = SHARDINGS["full"]
        found["resumed"] = {n: resumed(method, of_full, folder, 2, n) for n in saved(method)}
        found["moved"] = resumed(method, zero(method), folder, 2, MOVED)
    else:
        found["moved"] = resumed(method, SHARDINGS[places(method)[processes][-1]], folder, 2, MOVED)
    return found


def main(folder: str) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    toy_method.register()
    return {method: runs(method, Path(folder)) for method in METHODS}


if __name__ == "__main__":
    work(main)
