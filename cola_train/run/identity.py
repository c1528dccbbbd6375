"""What a run's checkpoints must agree in beside names and shapes: what their model computes."""

import dataclasses
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cola_train.config.schema import Config
from cola_train.data.shards import TOKENIZER
from cola_train.errors import UserError
from cola_train.run.recorded import read_recorded, recorded_config

# Of the model: its name, a choice of kernels, how it begins, and hints of which the method says
# what it made.
OTHERS = ("name", "attention", "embedding_std", "rank_ratio", "activation")


def about(config: Config, document_mask: bool, version: str, tokenizer: str) -> dict[str, Any]:
    """What a checkpoint says of its run: enough to build the model again, its identity, and the
    code that trains it.

    version: of that. tokenizer: the SHA-256 of the run's tokenizer.json, in hex.
    """
    return {
        "config": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "identity": identity(config, document_mask),
        "code": {"version": version, "commit": git_commit()},
    }


def git_commit() -> str | None:
    """The commit of the code that runs, `-dirty` if changed; None outside a checkout."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def start_of(config: Config, source: str, tokenizer: str) -> dict[str, Any]:
    """What a checkpoint says that is no run's, but weights where one may begin, at step 0 with a
    fresh optimizer. source: where they are from. tokenizer: as in `about`, of theirs."""
    return {
        "config": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "identity": _model_identity(config),
        "source": source,
    }


def is_start(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a start, by its state."""
    return "progress" not in state


def identity(config: Config, document_mask: bool) -> dict[str, Any]:
    """Every option that decides what the model computes, by its dotted name, as JSON values.

    What may change in a resumed run is not in it: recomputation, engine, kernels, batch size,
    precision, schedule. The loader has the data's own (`BatchLoader.state_dict`).
    """
    return {
        **_model_identity(config),
        "optim": config.optim.name,  # what its state means
        "data.document_mask": document_mask,
    }


def _model_identity(config: Config) -> dict[str, Any]:
    model = dataclasses.asdict(config.model)
    values = {
        **{f"model.{name}": value for name, value in model.items() if name not in OTHERS},
        "method": config.method.name,
        **{f"method.{name}": value for name, value in config.method.identity(config.model).items()},
    }
    return dict(json.loads(json.dumps(values)))  # as a checkpoint gives it back


def recorded_identity(checkpoint: Path) -> dict[str, Any]:
    """Of a checkpoint that an earlier version saved without: by the config.yaml of its run; empty
    if that cannot be read."""
    try:
        config = recorded_config(read_recorded(checkpoint.parents[1] / "config.yaml"))
    except (OSError, ValueError, UserError):
        return {}
    mask = config.data.document_mask
    found = identity(config, document_mask=bool(mask))
    if mask is None:  # it was the machine's to decide
        del found["data.document_mask"]
    return found


def refuse_another(saved: Mapping[str, Any], here: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises UserError, naming each option, if a checkpoint's identity is not this run's."""
    if different := _differences(saved, here):
        raise UserError(
            f"resume: {checkpoint} holds a model that computes something else.",
            *different,
            "Set these as they were, or begin a new run: choose another run_name (run_dir, where "
            "that is given).",
        )


def refuse_another_tokenizer(
    saved: Mapping[str, Any], here: Mapping[str, Any], checkpoint: Path
) -> None:
    """Raises UserError if a start's weights, by its state, know other tokens than this run's data
    are made of, by what `about` says. (A run's own data are compared by the loader.)"""
    if saved["tokenizer"] != here["tokenizer"]:
        file = checkpoint.absolute().parents[1] / TOKENIZER
        raise UserError(
            f"resume: the weights of {checkpoint} were trained with another tokenizer than this "
            f"run's data: set data.tokenizer={file}, or prepare the tokens with it"
        )


def refuse_warm_start(
    saved: Mapping[str, Any], here: Mapping[str, Any], methods: Sequence[str], checkpoint: Path
) -> None:
    """Raises UserError if the checkpoint's weights, by its identity, are not those of one of the
    methods for a model of this run's shape."""
    method = saved.get("method", "unknown")
    if method not in methods:
        raise UserError(
            f"method.warm_start: {checkpoint} is of method={method}; give one of "
            f"method={' or '.join(methods)}"
        )
    shape = {name: value for name, value in saved.items() if name.startswith("model.")}
    if different := _differences(shape, here):
        raise UserError(
            f"method.warm_start: {checkpoint} holds weights of another model.",
            *different,
            "Set these as they were there, or give another checkpoint.",
        )


def _differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {_shown(saved[name])} in the checkpoint, {_shown(here.get(name))} here"
        for name in saved
        if saved[name] != here.get(name)
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
