"""What can be chosen and set: the groups of configs/, and the options of the dataclasses."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cola_train.config.fields import defaults, field_types, union_of, unknown
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.methods import METHODS
from cola_train.methods.recipe import SIZES, Recipe

UNIONS = {
    field.name: union
    for field in dataclasses.fields(Config)
    if (union := union_of(field.type)) is not None
}
OPTIONS = field_types(Config)

Choices = dict[str, dict[str, Path]]  # group -> choice -> its file


def config_dir() -> Path:
    """The Hydra configs: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def takes_group(group: str, options: Mapping[str, Any]) -> bool:
    """Whether a command with these options takes choices of the group; an experiment sets any."""
    return group in options or (group == "experiment" and options.keys() >= OPTIONS.keys())


def choices(more: Iterable[Path] = ()) -> Choices:
    """Of each group, from the project's configs and from a user's folders like them.

    Raises:
        UserError: two different files are the same choice, of which Hydra would take the first; an
            experiment would be taken for a group of options.
    """
    found: Choices = {folder.name: {} for folder in config_dir().iterdir() if folder.is_dir()}
    problems = []
    for folder in (config_dir(), *more):
        for group, members in found.items():
            for file in sorted((folder / group).glob("*.yaml")):
                first = members.setdefault(file.stem, file)
                if first.read_bytes() != file.read_bytes():
                    problems.append(
                        f"{file}: there is a {group}={file.stem} already, {first}; give yours "
                        "another name"
                    )
                if group == "experiment" and "@package _global_" not in file.read_text():
                    problems.append(f"{file}: an experiment begins with `# @package _global_`")
    if problems:
        raise UserError(*problems)
    return found


def register_options(command: str = "", own: type | None = None) -> None:
    """Give Hydra the options' defaults, which stand in the dataclasses: configs/ says only what
    differs from them, and which member a union begins with; and the resolver of recipes.

    own: options of that command alone, which its file of configs/ names as `own@_here_: COMMAND`.
    """
    OmegaConf.register_new_resolver("recipe", of_recipe, replace=True)
    store = ConfigStore.instance()
    store.store(name="options", node=defaults(Config))
    for group, union in UNIONS.items():
        for tag, member in union.members.items():
            store.store(group=f"options/{group}", name=tag, node=defaults(member))
    if own is not None:
        store.store(group="own", name=command, node=defaults(own))


def of_recipe(size: str, field: str = "", *, _root_: DictConfig) -> float | None:
    """`${recipe:60m,lr}`: a field of the recipe that the chosen method was published with for a
    size, in a run of train.steps. The size is the experiment's: another model changes nothing.

    Raises:
        UserError: there is no such size, field or method.
    """
    method = str(_root_.method.name)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for what, name, known in (
        ("recipe: size", size, SIZES),
        ("recipe: field", field, fields),
        ("method:", method, METHODS),
    ):
        if name not in known:
            raise UserError(unknown(name, list(known), what))
    value: float | None = getattr(METHODS[method].recipe(size, int(_root_.train.steps)), field)
    return value
