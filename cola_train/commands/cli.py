"""The command lines: Hydra composes the configuration, errors become messages and exit codes."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cola_train import distributed
from cola_train.commands import quoting
from cola_train.commands.sweep import Folders, clean_state, job_name, one_folder_for_all
from cola_train.config.checks import CHECKS, Check, load
from cola_train.config.fields import defaults, field_types, is_text, is_texts, union_of, unknown
from cola_train.config.schema import Config
from cola_train.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_STOPPED_BY_SIGNAL,
    EXIT_USER_ERROR,
    TrainingError,
    UserError,
)
from cola_train.run.console import keep_going_without_console

UNIONS = {
    field.name: union
    for field in dataclasses.fields(Config)
    if (union := union_of(field.type)) is not None
}
OPTIONS = field_types(Config)


def config_dir() -> Path:
    """The Hydra configs: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def run_app(
    task: Callable[[Config], int],
    arguments: list[str] | None = None,
    checks: Iterable[Check] = CHECKS,
) -> NoReturn:
    """Compose a `Config` from the command line, run `task` on it, and exit with its code.

    Hydra's own flags (`--help`, `--cfg job`, `--multirun`, ...) work as everywhere.
    """
    run_composed(lambda values, problems: task(load(values, problems, checks=checks)), arguments)


def run_composed(
    task: Callable[[Mapping[str, Any], list[str]], int],
    arguments: list[str] | None = None,
    primary: str = "config",
    options: Mapping[str, Any] = OPTIONS,
) -> NoReturn:
    """`run_app` for a task that takes plain values, and the problems found so far, to load itself.

    primary: the file of configs/ to start from; options: the types of its options, by name.
    """
    if "LOCAL_RANK" in os.environ:  # DeepSpeed's launcher also gives it as an argument
        sys.argv = [word for word in sys.argv if not word.startswith("--local_rank=")]
    keep_going_without_console()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = vars(get_args_parser().parse_args(arguments))
    given = parsed.pop("overrides")
    try:
        overrides, problems = check_overrides(given, options, parsed["multirun"])
        if parsed["multirun"]:
            problems += one_folder_for_all(given)
        if any(parsed.values()):  # Hydra's flags
            if problems:
                raise UserError(*problems)
            checked = dict(zip(given, overrides, strict=True))
            sys.argv[1:] = [checked.get(word, word) for word in arguments]
            code = _run_hydra(task, primary)
        else:
            code = task(compose(overrides, problems, primary), problems)
        distributed.stop()
    except (UserError, TrainingError, HydraException, OmegaConfBaseException) as error:
        faulty = isinstance(error, TrainingError)
        code = EXIT_FAULT if faulty else EXIT_USER_ERROR
        # one process speaks for all of them; torchrun's others exit with the same code
        if distributed.is_main() or faulty:
            _print_problems(error)
        distributed.exit_without_peers(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        distributed.exit_without_peers(EXIT_INTERRUPTED)
    sys.exit(code)


def compose(
    overrides: list[str], problems: list[str], primary: str = "config"
) -> Mapping[str, Any]:
    """Plain nested values from Hydra's configs and `overrides`.

    Raises:
        UserError: with `problems` and what Hydra refuses.
    """
    register_options()
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return _plain(hydra.compose(primary, overrides), overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(*problems, _one_line(error)) from error


def register_options() -> None:
    """Give Hydra the options' defaults, which stand in the dataclasses: configs/ says only what
    differs from them, and which member a union begins with."""
    store = ConfigStore.instance()
    store.store(name="options", node=defaults(Config))
    for group, union in UNIONS.items():
        for tag, member in union.members.items():
            store.store(group=f"options/{group}", name=tag, node=defaults(member))
    OmegaConf.register_new_resolver("members", members_help, replace=True)


def members_help() -> str:
    """For `--help`: the options that each member of a union has for itself."""
    lines = ["Options of single members (`--help GROUP=MEMBER` shows their defaults):"]
    for group, union in UNIONS.items():
        names = {tag: [f.name for f in dataclasses.fields(m)] for tag, m in union.members.items()}
        shared = set.intersection(*map(set, names.values()))
        for tag, options in names.items():
            if own := [f"{group}.{name}" for name in options if name not in shared]:
                lines.append(f"  {group}={tag}: {', '.join(own)}")
    return "\n".join(lines)


def check_overrides(
    overrides: list[str], options: Mapping[str, Any] = OPTIONS, multirun: bool = False
) -> tuple[list[str], list[str]]:
    """The overrides that can be composed, and a message for each that cannot.

    An option of a union's other member is let through, for `build` to name its owner.

    options: the types of all options, by name. multirun: several values are a sweep.
    """
    names = list(options)
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in config_dir().iterdir()
        if folder.is_dir()
    }
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
            elif override.is_sweep_override() or choice in groups[key]:
                good.append(text)
            elif choice is None:
                problems.append(f"{key}: null is no choice; use one of {', '.join(groups[key])}")
            else:
                problems.append(unknown(str(choice), groups[key], f"{key}:"))
        elif key in tags:
            problems.append(f"{key}: choose the whole group; use {tags[key]}")
        elif key not in names:
            problems.append(unknown(key, names, "option"))
        else:
            of_union = "." in key and key.split(".")[0] in UNIONS and text.startswith(key)
            good.append(f"++{text}" if of_union else text)
    return good, problems


def readable(word: str, options: Mapping[str, Any], multirun: bool) -> tuple[str, str]:
    """An override as Hydra reads what was meant, and what the user must be told, if anything; with
    that said, the value stands for the one meant, so that no second problem follows from it."""
    kind = options.get(word.partition("=")[0].lstrip("+"))
    takes_text = is_text(kind) or is_texts(kind)
    override = quoting.parse(word)
    if override is None or (is_text(kind) and isinstance(override.value(), list | dict)):
        quoted = quoting.quote(word, kind)
        if "=" not in word or quoting.parse(quoted) is None:
            return word, f"override `{word}`: cannot be read; write option=value"
        # the grammar lacks the `~` of a path; what a number or a choice must be, `build` says
        if not takes_text or (override is None and quoting.parse(word.replace("~", "-"))):
            return quoted, ""
        typed = quoting.in_a_shell(word, kind)
        return quoted, f"override `{word}`: its value needs quotes; in a shell, type {typed}"
    if override.is_sweep_override() and not multirun:
        problem = f"override `{word}`: several values need --multirun (-m)"
        if takes_text:
            typed = quoting.in_a_shell(word, kind)
            return quoting.quote(word, kind), f"{problem}; for one text, type {typed}"
        return quoting.first_of_sweep(word, override), problem
    return quoting.as_typed(word, override, kind), ""


def _run_hydra(task: Callable[[Mapping[str, Any], list[str]], int], primary: str) -> int:
    """Let Hydra take the command line: for its flags, and for sweeps, whose jobs run in turn.

    A job that fails does not keep the others from running; one that a signal stops is the last.
    Returns the highest exit code.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us rather than to Hydra's own printer
    codes, folders = [EXIT_DONE], Folders()
    register_options()

    def job(values: DictConfig) -> None:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            codes.append(task(_plain(values, HydraConfig.get().overrides.task), []))
        elif EXIT_STOPPED_BY_SIGNAL not in codes:
            values.run_name = job_name(values.run_name)
            with clean_state():
                codes.append(_exit_code(task, values, folders))

    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=primary)(job)()
    return max(codes)


def _exit_code(
    task: Callable[[Mapping[str, Any], list[str]], int], values: DictConfig, folders: Folders
) -> int:
    """Of one job, whose mistakes are printed here: the next one has none of its frames."""
    try:
        folders.take(str(values.run_dir))
        return task(_plain(values, HydraConfig.get().overrides.task), [])
    except (UserError, TrainingError) as error:
        if distributed.is_main() or isinstance(error, TrainingError):
            print(f"{values.run_name}:", file=sys.stderr)
            _print_problems(error)
        return EXIT_FAULT if isinstance(error, TrainingError) else EXIT_USER_ERROR


def given_options(overrides: Iterable[str]) -> set[str]:
    """Names of the options and groups that overrides set."""
    return {word.split("=")[0].lstrip("+~") for word in overrides if "=" in word}


def _plain(values: DictConfig, overrides: Iterable[str]) -> Mapping[str, Any]:
    plain = OmegaConf.to_container(values, resolve=True)
    assert isinstance(plain, dict)
    return without_replaced({str(key): value for key, value in plain.items()}, overrides)


def without_replaced(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """What an experiment says goes where the command line says the same in another way: the batch
    in tokens, or another member of a union (`experiment=paper_60m data=tokens` reads no C4)."""
    given = given_options(overrides)
    train = values.get("train")
    for name, other in (("batch_size", "batch_tokens"), ("batch_tokens", "batch_size")):
        only_this = f"train.{name}" in given and f"train.{other}" not in given
        if only_this and isinstance(train, dict) and train[name] is not None:
            train[other] = None
    for group in given & UNIONS.keys():
        union, options = UNIONS[group], values[group]
        names = {tag: {f.name for f in dataclasses.fields(m)} for tag, m in union.members.items()}
        others = set.union(*names.values()) - names.get(str(options.get(union.tag)), {union.tag})
        replaced = {name for name in others if f"{group}.{name}" not in given}
        values[group] = {name: value for name, value in options.items() if name not in replaced}
    return values


def _one_line(error: BaseException) -> str:
    """Hydra's message without the repetition of the full configuration."""
    return str(error).strip().split("\n")[0]


def _print_problems(error: Exception) -> None:
    problems = error.problems if isinstance(error, UserError) else (_one_line(error),)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
