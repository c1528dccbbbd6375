"""The trainer's config from plain values, where Hydra is not installed."""

from pathlib import Path
from typing import Any

import yaml

from cola_train.config.fields import build, unknown
from cola_train.config.schema import Config
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

    Raises:
        UserError: there is no such model.
    """
    problems: list[str] = []
    config: Config = build(
        Config,
        {
            "run_name": "benchmark",
            "run_dir": "outputs/benchmark",
            "kernels": kernels,
            "model": read_model(model) | ({"n_layers": layers} if layers is not None else {}),
            "method": {"name": method},
            "recompute": {"name": recompute},
            "engine": {"name": "fsdp"},
            "data": {"source": "stdlib"},
            "optim": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]},
            "train": {
                "sequence_length": sequence_length,
                "batch_size": batch_size,
                "precision": precision,
                "compile": compiled,
            },
        },
        "",
        problems,
    )
    if problems:
        raise UserError(*problems)
    return config


def read_model(name: str) -> dict[str, Any]:
    """configs/model/<name>.yaml."""
    path = MODELS / f"{name}.yaml"
    if not path.exists():
        raise UserError(unknown(name, sorted(p.stem for p in MODELS.glob("*.yaml")), "--model:"))
    return dict(yaml.safe_load(path.read_text()))
