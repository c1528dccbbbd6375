"""The overrides of a command line: whether they can be composed, and what they leave of others."""

import dataclasses
from collections.abc import Iterable, Mapping, Set
from typing import Any, get_args, get_origin

from cola_train.commands import quoting
from cola_train.commands.groups import OPTIONS, UNIONS, Choices, choices
from cola_train.config.fields import is_as_typed, is_text, is_texts, unknown
from cola_train.config.hints import meant


def check_overrides(
    overrides: list[str],
    options: Mapping[str, Any] = OPTIONS,
    multirun: bool = False,
    groups: Choices | None = None,
) -> tuple[list[str], list[str]]:
    """The overrides that can be composed, and a message for each that cannot.

    An option of a union's other member is let through, for `build` to name its owner.

    options: the types of all options, by name. multirun: several values are a sweep.
    """
    names = list(options)
    groups = choices() if groups is None else groups
    tags = {
        f"{group}.{union.tag}": " or ".join(f"{group}={member}" for member in union.members)
        for group, union in UNIONS.items()
    }
    good, problems = [], []
    for word in overrides:
        text, problem = readable(word, options, multirun)
        problems += [problem] if problem else []
        if (override := quoting.parse(text)) is None:
            continue
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            good.append(text)
        elif key in groups:
            choice = override.value()
            if key == "experiment" and (override.is_delete() or "null" in text):
                good.append(text.replace("null", "[]"))  # Hydra's word for none
            elif override.is_sweep_override() or str(choice) in groups[key]:
                good.append(text)
            elif choice is None:
                problems.append(f"{key}: null is no choice; use one of {', '.join(groups[key])}")
            else:
                problems.append(unknown(str(choice), list(groups[key]), f"{key}:"))
        elif key in tags:
            problems.append(f"{key}: choose the whole group; use {tags[key]}")
        elif key not in names:
            problems.append(meant(key, names) or unknown(key, names, "option"))
        else:
            # what Hydra's own tree has no place for: a member's options, the keys of a mapping
            new = ("." in key and key.split(".")[0] in UNIONS) or takes_mapping(options[key])
            good.append(f"++{text}" if new and text.startswith(key) else text)
    return good, problems


def takes_mapping(kind: Any) -> bool:
    """Whether an option's value is itself a mapping."""
    return any(get_origin(each) is dict for each in (kind, *get_args(kind)))


def readable(word: str, options: Mapping[str, Any], multirun: bool) -> tuple[str, str]:
    """An override as Hydra reads what was meant, and what the user must be told, if anything; with
    that said, the value stands for the one meant, so that no second problem follows from it."""
    kind = options.get(word.partition("=")[0].lstrip("+"))
    if is_as_typed(kind) and "=" in word:
        return quoting.whole(word), ""
    takes_text = is_text(kind) or is_texts(kind)
    override = quoting.parse(word)
    if override is None or (is_text(kind) and isinstance(override.value(), list | dict)):
        quoted = quoting.quote(word, kind)
        if "=" not in word or quoting.parse(quoted) is None:
            how = "write option=value, or give a config file (.yaml)"
            return word, f"override `{word}`: cannot be read; {how}"
        # the grammar lacks the `~` of a path; what a number or a choice must be, `build` says
        if not takes_text or (override is None and quoting.parse(word.replace("~", "-"))):
            return quoted, ""
        typed = quoting.in_a_shell(word, kind)
        return quoted, f"override `{word}`: its value needs quotes; in a shell, type {typed}"
    if override.is_sweep_override() and not multirun:
        problem = f"override `{word}`: several values need --multirun (-m)"
        if takes_text or get_origin(kind) is list:
            typed = quoting.in_a_shell(word, kind)
            what = "one text" if is_text(kind) else "a list"
            return quoting.quote(word, kind), f"{problem}; for {what}, type {typed}"
        return quoting.first_of_sweep(word, override), problem
    return quoting.as_typed(word, override, kind), ""


def given_options(overrides: Iterable[str]) -> set[str]:
    """Names of the options and groups that overrides set."""
    return {word.split("=")[0].lstrip("+~") for word in overrides if "=" in word}


def without_replaced(
    values: dict[str, Any], overrides: Iterable[str], of_file: Set[str] = frozenset()
) -> dict[str, Any]:
    """What an experiment says goes where the command line says the same in another way: the batch
    in tokens, or another member of a union (`experiment=paper_60m data=tokens` reads no C4).

    of_file: what of the overrides a config file says; its options go where the command line
    chooses their group.
    """
    given = given_options(overrides)
    train = values.get("train")
    for name, other in (("batch_size", "batch_tokens"), ("batch_tokens", "batch_size")):
        only_this = f"train.{name}" in given and f"train.{other}" not in given
        if only_this and isinstance(train, dict) and train[name] is not None:
            train[other] = None
    for group in (given | {name.split(".")[0] for name in of_file}) & UNIONS.keys():
        union, options = UNIONS[group], values[group]
        names = {tag: {f.name for f in dataclasses.fields(m)} for tag, m in union.members.items()}
        others = set.union(*names.values()) - names.get(str(options.get(union.tag)), {union.tag})
        said = given if group in of_file else given - of_file
        replaced = {name for name in others if f"{group}.{name}" not in said}
        values[group] = {name: value for name, value in options.items() if name not in replaced}
    return values
