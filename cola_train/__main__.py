"""The command `cola-train`, which `python -m cola_train` and torchrun start too."""

from cola_train.commands.cli import run_app
from cola_train.commands.memory import TRAINING_CHECKS
from cola_train.train import train


def main() -> None:
    run_app(train, checks=TRAINING_CHECKS)


if __name__ == "__main__":
    main()
