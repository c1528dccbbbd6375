"""A config file, `cola-train my.yaml`: the overrides that it stands for, under the command line's.

Its keys are groups and options. A text for a group is a choice (`model: 60m`); a mapping holds
options, and chooses by its tag too (`method: {name: cola, rank: 16}`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cola_train.commands import quoting
from cola_train.commands.groups import OPTIONS, UNIONS, Choices, choices, config_dir, takes_group
from cola_train.commands.overrides import check_overrides, given_options, takes_mapping
from cola_train.config.fields import defaults, is_as_typed, unknown
from cola_train.errors import UserError

SUFFIXES = (".yaml", ".yml")
OTHER = r"\$\{([\w.]+)\}"  # in a value: that of another option
BATCH = {"train.batch_size", "train.batch_tokens"}  # two ways to say one thing


@dataclass(frozen=True)
class CommandLine:
    """What the words of a command line, and the file among them, come to."""

    overrides: list[str]  # that can be composed, the file's first
    problems: list[str]  # of those that cannot
    of_file: frozenset[str] = frozenset()  # options that the file sets, groups that it decides
    file: str = ""  # its name

    def located(self, problem: str) -> str:
        """A problem, with the file's name if it is about what the file says."""
        name = problem.partition(":")[0]
        return f"{self.file}: {problem}" if name in self.of_file else problem


def read_command_line(
    words: list[str],
    options: Mapping[str, Any] = OPTIONS,
    multirun: bool = False,
    folder: str | None = None,
) -> CommandLine:
    """
    options: the types of all options, by name. multirun: several values are a sweep.
    folder: of a user's own groups, as `--config-dir` names it.

    Raises:
        UserError: the file cannot be read, or a choice has two files.
    """
    files = [word for word in words if is_file(word)]
    if len(files) > 1:
        raise UserError(f"{' and '.join(files)}: one config file can be given; merge them")
    rest = [word for word in words if word not in files]
    if folder and not Path(folder).is_dir():
        raise UserError(f"--config-dir: {folder} is no folder")
    own = [*([Path(folder)] if folder else []), *(Path(file).parent for file in files)]
    searched = search_path(rest)
    local = [place.removeprefix("file://") for place in searched]
    found = choices([Path(place) for place in local if "://" not in place] + own)
    groups = {name: members for name, members in found.items() if takes_group(name, options)}
    good, problems = check_overrides(rest, options, multirun, groups)
    problems += [p for word in good for p in own_group_problems(word, options, groups)]
    if any((place / group).is_dir() for place in own for group in groups):
        places = [*searched, *(f"file://{place.absolute()}" for place in own)]
        good = [word for word in good if not word.startswith("hydra.searchpath=")]
        good.append(f"hydra.searchpath={quoting.write(places)}")
    if not files:
        return CommandLine(good, problems)
    (file,) = files
    said, wrong = check_overrides(file_overrides(file, options, groups), options, False, groups)
    replaced = {name for word in good for name in replaced_by(word, groups)}
    if replaced & BATCH:
        replaced |= BATCH
    said = [word for word in said if not given_options([word]) & replaced]
    wrong = [f"{file}: {problem}" for problem in wrong]
    wrong += [p for word in said for p in own_group_problems(word, options, groups)]
    places = [word for word in said if word.startswith("run_dir=") and "${run_name}" not in word]
    if places and "run_name" in given_options(good):
        wrong.append(f"{file}: {places[0]}: the folder of another run_name; give run_dir too")
    names = given_options(said)
    names |= {name.split(".")[0] for name in names} - replaced
    return CommandLine([*said, *good], [*wrong, *problems], frozenset(names), file)


def own_group_problems(word: str, options: Mapping[str, Any], groups: Choices) -> list[str]:
    """What is wrong with the options of a user's own group file that an override chooses."""
    override = quoting.parse(word)
    group = "" if override is None else override.key_or_group
    kind = options.get(group)
    if override is None or group not in groups or override.is_delete() or not is_dataclass(kind):
        return []
    problems = []
    for file in filter(None, (groups[group].get(choice) for choice in chosen(override))):
        if file.is_relative_to(config_dir()):
            continue
        values, known = load_yaml(file), defaults(kind)
        inherited = values.pop("defaults", None) is not None
        problems += [
            f"{file}: {unknown(key, list(known), 'option')}" for key in values if key not in known
        ]
        lacking = [name for name, value in known.items() if value == "???" and name not in values]
        if lacking and not inherited:
            problems.append(f"{file}: missing: {', '.join(lacking)}; give each a value")
    return problems


def is_file(word: str) -> bool:
    """Whether a word of the command line is a config file rather than an override."""
    return word.endswith(SUFFIXES) and ("=" not in word or Path(word).is_file())


def search_path(words: list[str]) -> list[str]:
    """Where `hydra.searchpath=[...]` says to look for groups."""
    overrides = [quoting.parse(word) for word in words if word.startswith("hydra.searchpath=")]
    values = [override.value() for override in overrides if override is not None]
    return [str(place) for value in values if isinstance(value, list) for place in value]


def file_overrides(file: str, options: Mapping[str, Any], groups: Choices) -> list[str]:
    """The overrides that the keys of a file stand for.

    Raises:
        UserError: it cannot be read, or names what does not exist.
    """
    values = load_yaml(Path(file))
    if "defaults" in values:
        raise UserError(
            f"{file}: defaults: a list of Hydra's, which has no place here; for `- model: 60m` "
            "write `model: 60m`"
        )
    name, run_dir = values.get("run_name"), values.get("run_dir")
    if isinstance(name, str) and isinstance(run_dir, str) and run_dir.endswith(f"/{name}"):
        # a run's own file: another name has another folder
        values["run_dir"] = f"{run_dir.removesuffix(name)}${{run_name}}"
    said = dict(flat(values, options, groups))
    for name in [name for name in said if is_dataclass(options.get(name)) and name not in groups]:
        value = said.pop(name)
        if value is not None:  # all that it holds is commented out
            raise UserError(f"{file}: {name}: a group of options is expected, got {value!r}")
    for option in followers(said, groups):
        del said[option]
    words, problems = [], []
    for key, value in said.items():
        if is_as_typed(options.get(key)):
            words += [] if value is None else [f"{key}={value}"]  # null is no text
        elif re.fullmatch(r"[\w.]+", key):
            words.append(f"{key}={quoting.write(value)}")
        else:
            problems.append(f"{file}: {unknown(key, list(options), 'option')}")
    if problems:
        raise UserError(*problems)
    return words


def load_yaml(file: Path) -> dict[str, Any]:
    """Plain values of a YAML file, in which `1e-3` is a number.

    Raises:
        UserError: it cannot be read, or holds something else than groups and options.
    """
    try:
        loaded = OmegaConf.load(file)
        values = OmegaConf.to_container(loaded, resolve=False)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UserError(f"{file}{line}: not YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not YAML: {error}") from error
    except OSError as error:  # OmegaConf's too, for a file that is one word
        why = error.strerror or "it holds no groups and options, as in `train: {steps: 1000}`"
        raise UserError(f"{file}: cannot be read: {why}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: a list; groups and options go here, as in `train: {{steps: 1}}`")
    return {str(key): value for key, value in values.items()}


def flat(
    values: Mapping[Any, Any], options: Mapping[str, Any], groups: Choices, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every choice and option."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping) or takes_mapping(options.get(name)):
            yield name, value
            continue
        if name in groups:
            tag = UNIONS[name].tag if name in UNIONS else "name"
            choice = value.get(tag)
            if choice is not None and (name in UNIONS or str(choice) in groups[name]):
                yield name, str(choice)
                value = {k: v for k, v in value.items() if k != tag}
        yield from flat(value, options, groups, f"{name}.")


def followers(said: Mapping[str, Any], groups: Choices) -> set[str]:
    """Options with the value that they would take from others, as in a run's own file: they go on
    to follow (`method.rank_ratio`, when another model is chosen)."""
    found = set()
    for group in groups.keys() & said.keys():
        for option, source in taken(group, str(said[group]), groups).items():
            if option in said and source in said and said[option] == said[source]:
                found.add(option)
    return found


def replaced_by(word: str, groups: Choices) -> set[str]:
    """What of a file an override of the command line replaces."""
    override = quoting.parse(word)
    if override is None or override.is_delete():
        return given_options([word]) | {word.lstrip("~")}
    key = override.key_or_group
    if key in groups:
        return {name for choice in chosen(override) for name in says(key, choice, groups)}
    if key in BATCH and override.value() is None:
        return set()  # the file's other one stays
    return {key}


def chosen(override: Override) -> list[str]:
    """The choices that an override of a group makes, several in a sweep."""
    if not override.is_sweep_override():
        return [str(override.value())]
    try:
        return list(override.sweep_string_iterator())
    except HydraException:  # a glob, which only Hydra can resolve
        return [""]


def says(group: str, choice: str, groups: Choices) -> set[str]:
    """The group, and the options that the choice's file sets: what it takes from others
    (`${model.vocab_size}`) can be said more closely beside it."""
    found, file = {group}, groups[group].get(choice)
    if file is None:
        return found
    values = load_yaml(file)
    for entry in values.pop("defaults", []):
        for key, member in entry.items() if isinstance(entry, dict) else ():
            other = key.removeprefix("override").strip().lstrip("/")
            if other in groups:
                found |= says(other, str(member), groups)
    said = flat(values, {}, {}, prefix_of(file, group))
    return found | {name for name, value in said if not re.search(OTHER, str(value))}


def taken(group: str, choice: str, groups: Choices) -> dict[str, str]:
    """Option -> the other one that it takes its value from, by a choice's file."""
    file = groups[group].get(choice)
    said = {} if file is None else dict(flat(load_yaml(file), {}, {}, prefix_of(file, group)))
    named = {name: re.fullmatch(OTHER, str(value)) for name, value in said.items()}
    return {name: source[1] for name, source in named.items() if source}


def prefix_of(file: Path, group: str) -> str:
    """What a group's file leaves out of its options' names."""
    return "" if "@package _global_" in file.read_text() else f"{group}."
