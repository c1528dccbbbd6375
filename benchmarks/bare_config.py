"""The trainer's config from plain values, where neither Hydra nor PyYAML is installed."""

from pathlib import Path
from typing import Any

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
    """configs/model/<name>.yaml: one `key: value` a line, numbers and words."""
    path = MODELS / f"{name}.yaml"
    if not path.exists():
        raise UserError(unknown(name, sorted(p.stem for p in MODELS.glob("*.yaml")), "--model:"))
    lines = (line.partition("#")[0] for line in path.read_text().splitlines())
    pairs = (line.split(":") for line in lines if line.strip())
    return {key.strip(): number_or_word(value.strip()) for key, value in pairs}


def number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
