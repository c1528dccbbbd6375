"""The command `cola-export`: a trained model as a folder that transformers loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cola_train.commands.cli import run_own
from cola_train.config.fields import PathText, PositiveFloat
from cola_train.convert.export import export
from cola_train.convert.output import end_cleanly
from cola_train.errors import EXIT_DONE


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how."""

    run_dir: PathText  # a run's folder, of which its newest good checkpoint; or a checkpoint
    out: PathText  # the folder to make, which must not be there yet
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the weights; fp32: as they were trained
    shard_gb: PositiveFloat = 5.0  # of one file of weights at most, in GB (10^9 bytes)
    tokenizer: PathText | None = None  # a tokenizer.json; null: the run's


def main() -> None:
    end_cleanly()
    run_own(_export, ExportOptions, command="cola-export")


def _export(options: ExportOptions) -> int:
    out = Path(options.out)
    export(
        Path(options.run_dir),
        out,
        dtype=options.dtype,
        shard_bytes=int(options.shard_gb * 1e9),
        tokenizer=None if options.tokenizer is None else Path(options.tokenizer),
    )
    print(out)
    return EXIT_DONE


if __name__ == "__main__":
    main()
