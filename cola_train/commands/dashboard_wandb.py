"""`cola-dashboard wandb`: a workspace for the runs of a project of W&B."""

from dataclasses import dataclass
from pathlib import Path

from cola_train.commands.cli import run_own
from cola_train.config.fields import PathText
from cola_train.dashboards.workspace import NAME, as_json, build, save
from cola_train.errors import EXIT_DONE, UserError
from cola_train.files import write_json
from cola_train.progress import say

COMMAND = "cola-dashboard wandb"


@dataclass(frozen=True)
class WorkspaceOptions:
    """What `cola-dashboard wandb` takes."""

    project: str = "cola_train"  # in W&B, as tracking.project
    entity: str | None = None  # W&B's user or team; null: its default
    name: str = NAME  # of the workspace
    out: PathText | None = None  # its JSON in a file instead of W&B; needs no network


def main() -> None:
    run_own(run, WorkspaceOptions, COMMAND)


def run(options: WorkspaceOptions) -> int:
    """Save the workspace, and print where it is; returns the exit code.

    Raises:
        UserError: the library is missing, W&B does not take it, or the file cannot be written.
    """
    if options.out is None:
        say(f"asking W&B for a workspace in {options.project}")
        print(save(options.entity, options.project, options.name))
        return EXIT_DONE
    view = as_json(build(options.entity or "", options.project, options.name))
    try:
        write_json(Path(options.out), view)
    except OSError as error:
        raise UserError(f"out: cannot write {options.out}: {error.strerror}") from error
    print(options.out)
    return EXIT_DONE


if __name__ == "__main__":
    main()
