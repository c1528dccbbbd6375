"""The folder of a run: whether a run may begin or go on in it, and the configuration it records."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.data.shards import TOKENIZER
from cola_train.errors import UserError
from cola_train.files import read_json, write_json, write_text
from cola_train.hardware import compiled_on
from cola_train.progress import say
from cola_train.run.metrics import METRICS
from cola_train.run.owner import Owner
from cola_train.run.recorded import FACTS, read_recorded, recorded_config
from cola_train.run.status import LATEST

# A finished run that is started again only reports: options by which it would be another run.
# (`identity` and the loader have compared what the model and the data are.)
RECIPE = (
    "method", "optim", "train.steps", "train.precision", "train.spike_deviations", "train.z_loss",
)  # fmt: skip

# What it may mean that a resumed run has another value of these.
ROUNDING = "the same function, rounded otherwise"
MEANINGS = {
    "train.steps": "another schedule",
    "train.batch_size": "another number of tokens a step",
    "train.batch_tokens": "another number of tokens a step",
    "optim": "another optimizer from here on",
    "evaluation.tokens": "validation losses before and after are not of the same tokens",
    **dict.fromkeys(
        ("train.precision", "train.micro_batch_size", "train.compile", "train.deterministic",
         "train.threads", "engine", "kernels", "recompute", "model.attention"),
        ROUNDING,
    ),
}  # fmt: skip
BATCH = "train.batch_"
NEW_RUN = "choose another run_name (run_dir, where that is given), or remove the folder"


def refuse_to_mix_runs(config: Config) -> None:
    """Raises UserError if resume=never would mix two runs in one folder, or if the checkpoints of
    a run cannot be where they belong."""
    run_dir = Path(config.run_dir)
    checkpoints = run_dir / "checkpoints"
    for path in (run_dir, checkpoints):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(
                f"run_dir: {path} is no folder, or a link to one that is not there; bring it back, "
                "or remove it"
            )
    begun = any((run_dir / name).exists() for name in (METRICS, LATEST))
    if config.resume == "never" and (begun or any(checkpoints.glob("step-*"))):
        raise UserError(
            f"resume: {run_dir} holds an earlier run, which resume=never would mix with this "
            f"one; {NEW_RUN}"
        )


def refuse_to_begin_again(run_dir: Path) -> None:
    """For a run that found no checkpoint to go on from. Raises UserError if there was one."""
    names = [path.name.split("-")[1] for path in (run_dir / "checkpoints").glob("step-*")]
    steps = [int(digits) for name in names if (digits := name.split(".")[0]).isdecimal()]
    try:
        steps.append(int(read_json(run_dir / LATEST)["step"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError):
        steps.append(0)  # unreadable, but there
    if steps:
        raise UserError(
            f"run_dir: {run_dir} has a run at step {max(steps)} and no readable checkpoint; bring "
            f"its checkpoints back. For a new run {NEW_RUN}"
        )


def record_config(config: Config, owner: Owner, finished: bool) -> None:
    """Write the resolved config into the run's folder, and say what a resumed run changes.

    finished: no step is left to train.

    Raises:
        UserError: on every process; the file cannot be written, or a finished run would report
            its result as that of another recipe.
        SupersededError: the folder is another start's by now.
    """
    distributed.from_main(lambda: _record(config, owner, finished))


def _record(config: Config, owner: Owner, finished: bool) -> None:
    path = Path(config.run_dir) / "config.yaml"
    values = dataclasses.asdict(config)
    recorded = _recorded(path)
    changed = changes(recorded, values)
    before = _earlier(recorded)
    device = distributed.device()
    # what is the same, said in another way
    said = tuple(f"method.{key}" for key in config.method.identity(config.model))
    if before is not None and before.batch_size == config.batch_size:
        said += (BATCH,)
    if before is not None and compiled_on(device, before) == compiled_on(device, config):
        said += ("train.compile",)
    changed = [change for change in changed if not change[0].startswith(said)]
    others = [(n, old, new) for n, old, new in changed if _of(n, RECIPE) or n.startswith(BATCH)]
    if finished and others:
        raise UserError(
            f"run_dir: {config.run_dir} holds a finished run of another recipe.",
            *(f"{name}: {_shown(old)} there, {_shown(new)} here" for name, old, new in others),
            f"For a new run {NEW_RUN}; the finished one asks for its own options.",
        )
    for name, old, new in changed:
        meaning = "".join(f" ({MEANINGS[part]})" for part in _of(name, MEANINGS))
        say(f"changed since this run began: {name}: {_shown(old)} -> {_shown(new)}{meaning}")
    if before is not None and (jump := _jump(before, config, owner.step)):
        say(f"changed since this run began: {jump}")
    owner.check()
    import yaml  # a step is timed without it

    try:
        write_text(path, yaml.safe_dump(values, sort_keys=False))
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path}: {error.strerror}") from error


def record_tokenizer(tokens: Path, owner: Owner) -> None:
    """Copy the tokenizer of a prepared folder into the run's, whose model is read with it.

    Raises:
        UserError: on every process; the copy cannot be written.
        SupersededError: the folder is another start's by now.
    """
    distributed.from_main(lambda: _record_tokenizer(tokens / TOKENIZER, owner))


def record_facts(facts: Mapping[str, Any], owner: Owner) -> None:
    """Write where the run runs, and what its model costs; raises as `record_tokenizer`."""
    distributed.from_main(lambda: _record_facts(facts, owner))


def _record_facts(facts: Mapping[str, Any], owner: Owner) -> None:
    path = owner.run_dir / FACTS
    try:
        owner.check()
        write_json(path, facts)
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path}: {error.strerror}") from error


def _record_tokenizer(source: Path, owner: Owner) -> None:
    path = owner.run_dir / TOKENIZER
    content = source.read_bytes()
    try:
        if not path.exists() or path.read_bytes() != content:
            owner.check()
            write_text(path, content.decode())
    except OSError as error:
        raise UserError(f"run_dir: cannot write {path}: {error.strerror}") from error


def _recorded(path: Path) -> dict[str, Any] | None:
    """The options of an earlier start, if they can be read."""
    try:
        return read_recorded(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        say(f"{path}: damaged ({error}); written anew, what has changed cannot be said")
        return None


def changes(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of the options that both have and that differ."""
    if prefix == "" and old is None:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    return [
        change
        for key in new
        if key in old
        for change in changes(old[key], new[key], f"{prefix}{key}.")
    ]


def _earlier(recorded: dict[str, Any] | None) -> Config | None:
    """The config that was recorded, if this version can read it."""
    try:
        return recorded_config(recorded or {})
    except UserError:
        return None


def _jump(before: Config, config: Config, step: int) -> str | None:
    """How the learning rate goes on after `step` otherwise than it would have, if it does."""
    if step == 0:
        return None

    def rate(of: Config, step: int) -> float:
        return of.method.learning_rate(of, step)

    if rate(before, step + 1) == rate(config, step + 1):
        return None
    return (
        f"the learning rate: {rate(before, step):.3g} at step {step}, "
        f"{rate(config, step + 1):.3g} at step {step + 1}"
    )


def _of(name: str, parts: Iterable[str]) -> list[str]:
    """Those of `parts` that are an option's name or that of its group."""
    return [part for part in parts if name == part or name.startswith(f"{part}.")]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
