"""The command `cola-prepare`: text to token shards, before a run rather than at its start.

`cola-prepare list` and `cola-prepare clean` look after what it made (`caches.py`).
"""

import signal
import sys

from cola_train.commands import caches
from cola_train.commands.cli import run_app
from cola_train.config.schema import Config
from cola_train.data.preparation import prepare
from cola_train.errors import EXIT_DONE


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in caches.COMMANDS:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-prepare list | head` just ends
        sys.exit(caches.main(sys.argv[1:]))
    run_app(_prepare, command="cola-prepare")


def _prepare(config: Config) -> int:
    """Prepare what a training with the same overrides would read, and say where it is."""
    folder = prepare(config.data, config.model.vocab_size)
    print(folder)
    return EXIT_DONE


if __name__ == "__main__":
    main()
