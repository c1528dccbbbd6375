"""What run a checkpoint is of, for those who use its model."""

from dataclasses import replace
from pathlib import Path

from cola_train.checkpoint.files import read_state
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.run.recorded import read_recorded, recorded_config


def config_of_run(checkpoint: Path) -> Config:
    """The config of the run that saved it.

    Raises:
        UserError: an earlier version saved it, and its run's config.yaml is not there.
    """
    values = read_state(checkpoint).get("config")
    if values is None:
        path = run_of(checkpoint) / "config.yaml"
        try:
            values = read_recorded(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {checkpoint} needs it") from None
    return recorded_config(values)


def config_of(checkpoint: Path) -> Config:
    """The same, for a model in fp32 that nothing has compiled, on any device."""
    config = config_of_run(checkpoint)
    train = replace(config.train, precision="fp32", compile=False)
    return replace(config, train=train, kernels="auto")


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that saved it, where that has not been moved."""
    return checkpoint.absolute().parents[1]
