"""Commands that run data through a trained model: options of their own, and those of data."""

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from cola_train.commands.groups import OPTIONS
from cola_train.commands.overrides import given_options
from cola_train.config.fields import build, known
from cola_train.evaluation.options import OF_THE_MODEL

SHARED = {name: kind for name, kind in OPTIONS.items() if name.partition(".")[0] == "data"}

Own = TypeVar("Own")


def own_and_data(
    kind: type[Own], values: Mapping[str, Any], problems: list[str]
) -> tuple[Own, dict[str, Any]]:
    """The command's options, a dataclass, and what is said of data. What is wrong goes to
    `problems`."""
    options = build(kind, known(kind, values), "", problems)
    given = given_options(sys.argv[1:])
    problems += [
        f"data.{name}: the model's own is taken, no other fits; leave it out"
        for name in OF_THE_MODEL
        if f"data.{name}" in given
    ]
    data = values.get("data") or {}
    return options, {k: v for k, v in data.items() if k not in OF_THE_MODEL}
