"""The trainer's config as a benchmark's command line gives it."""

from collections.abc import Mapping, Sequence

from cola_train.commands.cli import compose
from cola_train.commands.overrides import check_overrides
from cola_train.config.checks import load
from cola_train.config.schema import Config


def make_config(overrides: Sequence[str], defaults: Mapping[str, str]) -> Config:
    """The config of `overrides`, over `defaults` that differ from cola-train's.

    Raises:
        UserError: as cola-train does.
    """
    given = {text.lstrip("+").split("=")[0] for text in overrides}
    extra = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    good, problems = check_overrides([*extra, *overrides])
    return load(compose(good, problems), problems)
