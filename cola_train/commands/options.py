"""Every option with its kind, default and meaning: for `--help GROUP` and docs/options.md."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_train.commands.config_file import load_yaml
from cola_train.commands.groups import UNIONS, Choices, choices, config_dir
from cola_train.config.describe import Option, about, is_group, options_of, shown
from cola_train.config.schema import Config

GROUPS = {field.name: field.type for field in dataclasses.fields(Config) if is_group(field.type)}


def of_group(group: str, choice: str = "", groups: Choices | None = None) -> list[Option]:
    """The options of a group ("": of none), with their names whole.

    choice: of the group, whose options and values these are; its default if empty.
    """
    groups = choices() if groups is None else groups
    file = groups.get(group, {}).get(choice or default_choice(group))
    values = load_yaml(file) if file else first_values()
    found = []
    for option in options_of(GROUPS[group] if group else Config):
        if choice and option.members and choice not in option.members:
            continue
        value = shown(values[option.name]) if option.name in values else option.default
        other = group in UNIONS and not choice  # the defaults of no member but the dataclass's
        default = option.default if other else value
        members = () if choice else option.members
        name = f"{group}.{option.name}" if group else option.name
        found.append(dataclasses.replace(option, name=name, default=default, members=members))
    return found


def first_values() -> dict[str, Any]:
    """What configs/config.yaml says."""
    return load_yaml(config_dir() / "config.yaml")


def default_choice(group: str) -> str:
    """The choice that a run begins with; empty if there is none."""
    for entry in first_values()["defaults"]:
        if isinstance(entry, dict) and entry.get(group):
            return str(entry[group])
    return ""


def first_comment(file: Path) -> str:
    """What a file of configs/ says of itself, if anything."""
    lines = file.read_text().splitlines()
    comments = [
        line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line
    ]
    return comments[0] if comments else ""


def choice_lines(group: str, groups: Choices) -> Iterator[tuple[str, str]]:
    """(choice, what it is) of a group."""
    for name, file in groups.get(group, {}).items():
        member = UNIONS[group].members.get(name) if group in UNIONS else None
        text = about(member) if member else first_comment(file).rstrip(".")
        values = ", ".join(f"{key} {value}" for key, value in load_yaml(file).items())
        yield f"{group}={name}", text or ("" if group == "experiment" else values)


def meaning(option: Option) -> str:
    """With the members that have it, if not all have."""
    group = option.name.partition(".")[0]
    owners = "|".join(option.members)
    return f"{option.meaning} ({group}={owners})" if owners else option.meaning
