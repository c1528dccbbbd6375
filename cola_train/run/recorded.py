"""What a run has recorded: its config, in its config.yaml or a checkpoint, by any version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cola_train.config.fields import build, known
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.files import read_yaml

FACTS = "facts.json"  # in a run's folder: where it runs, and what its model costs

# Options of the model that commits up to 5dacad5 called so.
RENAMED = {"cola_rank_ratio": "rank_ratio", "cola_activation": "activation"}


def read_recorded(path: Path) -> dict[str, Any]:
    """Raises:
    OSError: the file is not there, or cannot be read.
    ValueError: it holds no options.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError("it holds no options")
    return values


def recorded_config(values: Mapping[str, Any]) -> Config:
    """The config, without options that there are no more.

    Raises:
        UserError: what this version needs is not in it.
    """
    if not isinstance(model := values.get("model"), Mapping):
        raise UserError("model: missing in the recorded config")
    model = {RENAMED.get(name, name): value for name, value in model.items()}
    problems: list[str] = []
    config: Config = build(Config, known(Config, {**values, "model": model}), "", problems)
    if problems:
        raise UserError(*problems)
    return config
