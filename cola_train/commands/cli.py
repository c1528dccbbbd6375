"""The command lines: Hydra composes the configuration, errors become messages and exit codes."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cola_train import __version__, distributed
from cola_train.commands.config_file import CommandLine, is_file, read_command_line
from cola_train.commands.groups import OPTIONS, choices, config_dir, register_options
from cola_train.commands.help import help_lines
from cola_train.commands.overrides import without_replaced
from cola_train.commands.results import Job, report
from cola_train.commands.sweep import Folders, clean_state, job_name, one_folder_for_all, swept
from cola_train.config.checks import CHECKS, Check, load
from cola_train.config.fields import build, field_types
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

T = TypeVar("T")
Task = Callable[[Mapping[str, Any], list[str]], int]  # of plain values, and problems found before


def run_app(
    task: Callable[[Config], int],
    arguments: list[str] | None = None,
    checks: Iterable[Check] = CHECKS,
    command: str = "cola-train",
) -> NoReturn:
    """Compose a `Config` from the command line, run `task` on it, and exit with its code.

    Hydra's own flags (`--cfg job`, `--multirun`, ...) work as everywhere.
    """

    def of_values(values: Mapping[str, Any], problems: list[str]) -> int:
        return task(load(values, problems, checks=checks))

    run_composed(of_values, arguments, command=command)


def run_composed(
    task: Task,
    arguments: list[str] | None = None,
    command: str = "cola-train",
    own: type | None = None,
    shared: Mapping[str, Any] = OPTIONS,
) -> NoReturn:
    """`run_app` for a task that takes plain values, and the problems found so far, to load itself.

    command: whose help this is. own: a dataclass of options that it alone has; it starts from the
    file of configs/ named as it is without `cola-`, `-` for a blank. shared: those of `cola-train`
    that it takes, by name: their types.
    """
    named = command.replace(" ", "-")
    primary = "config" if own is None else named.removeprefix("cola-")
    options = shared if own is None else {**field_types(own), **shared}
    register_options(named, own)
    if "LOCAL_RANK" in os.environ:  # DeepSpeed's launcher also gives it as an argument
        sys.argv = [word for word in sys.argv if not word.startswith("--local_rank=")]
    keep_going_without_console()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parse_flags(arguments)
    words, own_groups = parsed.pop("overrides"), parsed.pop("config_dir")
    flags = [word for word in arguments if word not in words]
    line = CommandLine([], [])
    try:
        if parsed["shell_completion"]:
            complete(command, arguments, primary)
        if parsed["help"]:
            files = [word for word in words if is_file(word)]
            folders = [Path(own_groups)] if own_groups else []
            groups = choices([*folders, *(Path(file).parent for file in files)])
            asked = [word for word in words if word not in files]
            print("\n".join(help_lines(command, asked, groups, shared, own)))
            sys.exit(EXIT_DONE)
        line = read_command_line(words, options, parsed["multirun"], own_groups)
        problems = line.problems
        if parsed["multirun"]:
            problems += one_folder_for_all(line.overrides)
        sys.argv[1:] = [*flags, *line.overrides]  # what the file says is as if it were typed
        if any(parsed.values()):  # Hydra's flags
            if problems:
                raise UserError(*problems)
            code = _run_hydra(task, primary, line, command == "cola-train")
        else:
            code = task(compose(line.overrides, problems, primary, line.of_file), problems)
        distributed.stop()
    except (UserError, TrainingError, HydraException, OmegaConfBaseException) as error:
        faulty = isinstance(error, TrainingError)
        code = EXIT_FAULT if faulty else EXIT_USER_ERROR
        # one process speaks for all of them; torchrun's others exit with the same code
        if distributed.is_main() or faulty:
            print_problems(error, line)
        distributed.exit_without_peers(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        distributed.exit_without_peers(EXIT_INTERRUPTED)
    sys.exit(code)


def run_own(task: Callable[[T], int], own: type[T], command: str) -> NoReturn:
    """The same for a task that takes the options of a command that has none but its own, in the
    dataclass `own`."""

    def of_values(values: Mapping[str, Any], problems: list[str]) -> int:
        options = build(own, values, "", problems)
        if problems:
            raise UserError(*problems)
        return task(options)

    run_composed(of_values, command=command, own=own, shared={})


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """Hydra's flags, and the rest as `overrides`, in any order; exits with 2 for an unknown one,
    with 0 after `--version`."""
    if "--version" in arguments:
        print(f"cola_train {__version__}")
        sys.exit(EXIT_DONE)
    for flag in (word.partition("=")[0] for word in arguments):
        if flag.startswith("--config") and flag != "--config-dir":
            print(f"error: {flag}: give the file itself, as in cola-train my.yaml", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)
    flags, unknown = get_args_parser().parse_known_intermixed_args(arguments)
    if unknown:
        print(f"error: {unknown[0]}: no such flag; see --help and --hydra-help", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    return vars(flags)


def complete(command: str, arguments: list[str], primary: str) -> NoReturn:
    """Hydra's tab completion: `install=bash` prints its script, `query=bash` what may follow."""
    sys.argv = [command, *arguments]
    words = os.environ.get("COMP_LINE", "").split(" ")
    os.environ["COMP_LINE"] = " ".join(word for word in words if not is_file(word))
    register_options()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=primary)(id)()
    except (HydraException, OmegaConfBaseException):
        if not any("query=" in word for word in arguments):  # there, nobody would read it
            raise
    sys.exit(EXIT_DONE)


def compose(
    overrides: list[str],
    problems: list[str],
    primary: str = "config",
    of_file: Set[str] = frozenset(),
) -> Mapping[str, Any]:
    """Plain nested values from Hydra's configs and `overrides`.

    of_file: what of the overrides a config file says.

    Raises:
        UserError: with `problems`, or else what Hydra refuses.
    """
    register_options()
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return _plain(hydra.compose(primary, overrides), overrides, of_file)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(*(problems or [_one_line(error)])) from error


def _run_hydra(task: Task, primary: str, line: CommandLine, with_results: bool) -> int:
    """Let Hydra take the command line: for its flags, and for sweeps, whose jobs run in turn.

    A job that fails does not keep the others from running; one that a signal stops is the last.
    Returns the highest exit code.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us rather than to Hydra's own printer
    codes, folders, jobs, sweep_dir = [EXIT_DONE], Folders(), [], "."
    register_options()

    def run(values: DictConfig) -> int:
        return task(_plain(values, HydraConfig.get().overrides.task, line.of_file), [])

    def job(values: DictConfig) -> None:
        nonlocal sweep_dir
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            codes.append(run(values))
            return
        options, sweep_dir = swept(line.overrides), HydraConfig.get().sweep.dir
        values.run_name = job_name(values.run_name, options)
        jobs.append(Job(values.run_name, str(values.run_dir), options))
        if EXIT_STOPPED_BY_SIGNAL in codes:
            jobs[-1].state, jobs[-1].began = "not started", False
            return
        with clean_state():
            codes.append(_exit_code(run, values, folders, line, jobs[-1]))

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=primary)(job)()
    finally:
        if jobs and with_results and distributed.is_main():
            report(jobs, Path(sweep_dir))
    return max(codes)


def _exit_code(
    run: Callable[[DictConfig], int],
    values: DictConfig,
    folders: Folders,
    line: CommandLine,
    job: Job,
) -> int:
    """Of one job, whose mistakes are printed here: the next one has none of its frames."""
    try:
        folders.take(str(values.run_dir))
        code = run(values)
        job.state = "stopped" if code == EXIT_STOPPED_BY_SIGNAL else "done"
        return code
    except (UserError, TrainingError) as error:
        if distributed.is_main() or isinstance(error, TrainingError):
            print(f"{values.run_name}:", file=sys.stderr)
            print_problems(error, line)
        job.state, job.began = f"failed: {_one_line(error)}", isinstance(error, TrainingError)
        return EXIT_FAULT if isinstance(error, TrainingError) else EXIT_USER_ERROR


def _plain(
    values: DictConfig, overrides: Iterable[str], of_file: Set[str] = frozenset()
) -> Mapping[str, Any]:
    plain = OmegaConf.to_container(values, resolve=True)
    assert isinstance(plain, dict)
    return without_replaced({str(key): value for key, value in plain.items()}, overrides, of_file)


def _one_line(error: BaseException) -> str:
    """Hydra's message without the repetition of the full configuration; a resolver's own."""
    line = str(error).strip().split("\n")[0]
    return line.removeprefix("UserError raised while resolving interpolation: ")


def print_problems(error: Exception, line: CommandLine) -> None:
    problems = error.problems if isinstance(error, UserError) else (_one_line(error),)
    for problem in problems:
        print(f"error: {line.located(problem)}", file=sys.stderr)
