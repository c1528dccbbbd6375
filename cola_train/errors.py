"""Exceptions that end a run with a message instead of a traceback, and the exit codes."""

# Exit codes that users' scripts rely on (docs/architecture.md, Contracts).
EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED_BY_SIGNAL = 75  # after a good checkpoint: start me again
EXIT_INTERRUPTED = 130  # Ctrl-C before training began, or a second one


class UserError(Exception):
    """A mistake in the configuration, a file or the environment, which the user can mend.

    The message names the field or file and the fix. The command line prints it on stderr and
    exits with `EXIT_USER_ERROR`. Carries several problems when several were found.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class TrainingError(Exception):
    """Training cannot go on (non-finite losses, say); exits with `EXIT_FAULT`."""
