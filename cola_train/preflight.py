"""Everything about a run that can be checked before its job waits in a queue.

`python -m cola_train.preflight --processes 16 [OVERRIDES]` prints the run's folder and the number
of the launch that begins now (see `cola_train.status`), or exits with 2 and says what is wrong.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from cola_train import costs, distributed
from cola_train.cli import check_overrides, compose
from cola_train.config import Config, load
from cola_train.errors import EXIT_USER_ERROR, UserError
from cola_train.status import next_launch

BYTES_PER_PARAMETER = 12  # fp32 weights and the two fp32 moments of AdamW


def problems(config: Config, gpus: int) -> list[str]:
    """What keeps `config` from running here; `gpus`: those of one node, 0 where this is not it."""
    found = [*disk_problems(config)]
    if gpus > 0 and distributed.gpus() < gpus:
        found.append(
            f"GPUS_PER_NODE: {gpus}, but this node offers {distributed.gpus()} GPUs to this job; "
            "lower it, or choose another partition"
        )
    return found


def disk_problems(config: Config) -> list[str]:
    """Whether the run's folder can be written and holds the checkpoints that will be kept, and
    the one being written beside them."""
    run_dir = Path(config.run_dir).absolute()
    there = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [f"run_dir: {there} is not a folder that can be written; choose another run_dir"]
    checkpoints = config.checkpoint.keep + config.checkpoint.keep_best + 1
    needed = checkpoints * costs.parameters(config) * BYTES_PER_PARAMETER
    held = sum(file.stat().st_size for file in run_dir.glob("checkpoints/step-*/*"))
    free = shutil.disk_usage(there).free
    if needed - held <= free:
        return []
    return [
        f"run_dir: {there} has {free / 1e9:.1f} GB free, {checkpoints} checkpoints take "
        f"{needed / 1e9:.1f} GB; free some space, lower checkpoint.keep, or choose another run_dir"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cola_train.preflight")
    parser.add_argument("--processes", type=int, required=True, help="of the whole run")
    parser.add_argument("--gpus", type=int, default=0, help="that this very machine must have")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for cola-train")
    options = parser.parse_args()
    os.environ["WORLD_SIZE"] = str(options.processes)  # what the checks of the config divide by
    try:
        good, wrong = check_overrides(options.overrides)
        config = load(compose(good, wrong), wrong)
        if found := problems(config, options.gpus):
            raise UserError(*found)
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(Path(config.run_dir).absolute())
    print(next_launch(Path(config.run_dir)))


if __name__ == "__main__":
    main()
