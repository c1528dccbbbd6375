"""A config of the parts that a training step needs, where Hydra and YAML are not installed."""

import dataclasses
from pathlib import Path
from typing import Any

from cola_train.config.fields import unknown
from cola_train.config.schema import (
    Config,
    EngineConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RecomputeConfig,
    TrainConfig,
)
from cola_train.errors import UserError

MODELS = Path(__file__).parents[1] / "configs" / "model"


def bare_config(
    model: str,
    method: str,
    recompute: str,
    *,
    batch_size: int,
    sequence_length: int,
    precision: str,
    compiled: bool,
    layers: int | None = None,
    kernels: str = "auto",
) -> Config:
    """The trainer's defaults for a step of `model`; `layers` in place of all of its layers.

    Groups that a step does not read (data, tracking, ...) are left out, as None.

    Raises:
        UserError: there is no such model.
    """
    shape = read_model(model)
    if layers is not None:
        shape = dataclasses.replace(shape, n_layers=layers)
    values: dict[str, Any] = {
        "seed": 0,
        "kernels": kernels,
        "model": shape,
        "method": MethodConfig(
            method, shape.cola_rank_ratio, None, shape.cola_activation,  # type: ignore[arg-type]
        ),
        "recompute": RecomputeConfig(recompute),  # type: ignore[arg-type]
        "engine": dataclasses.replace(
            nothing(EngineConfig), name="fsdp", sharding="full", reshard_after_forward=True,
            sync_every_micro_batch=True, timeout_seconds=600.0,
        ),
        "optim": OptimConfig("adamw", 1e-3, [0.9, 0.999], 1e-8, 0.01, None, 0.1, 0.5),
        "train": TrainConfig(
            steps=1, stop_after=None, sequence_length=sequence_length, batch_size=batch_size,
            batch_tokens=None, micro_batch_size=None, compile=compiled,
            precision=precision,  # type: ignore[arg-type]
            deterministic=False, threads=None, non_finite="skip", max_skipped_in_a_row=1,
            spike_deviations=None, rollback_after=None, hang_seconds=None, log_every=1,
        ),
    }  # fmt: skip
    return dataclasses.replace(nothing(Config), **values)


def nothing(kind: type) -> Any:
    """A dataclass of that type whose fields are all None."""
    return kind(**{field.name: None for field in dataclasses.fields(kind)})


def read_model(name: str) -> ModelConfig:
    """configs/model/<name>.yaml: one `key: value` a line, numbers and words."""
    path = MODELS / f"{name}.yaml"
    if not path.exists():
        raise UserError(unknown(name, sorted(p.stem for p in MODELS.glob("*.yaml")), "--model:"))
    kinds = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    values: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        key, _, text = line.partition("#")[0].partition(":")
        if text:
            number = int if "int" in str(kinds[key]) else float
            values[key] = number(text) if is_number(text) else text.strip()
    return ModelConfig(**values)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
