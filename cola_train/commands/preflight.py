"""Everything about a run that can be checked before its job waits in a queue.

`python -m cola_train.commands.preflight --nodes 2 --processes-per-node 8 --gpus-per-node 8
-- [OVERRIDES]` prints the run's folder and the number of the launch that begins now (see
`cola_train.run.status`), or exits with 2 and says what is wrong. `--elsewhere` leaves out
what only the run's nodes can tell.
"""

import argparse
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from cola_train import __version__, costs, distributed
from cola_train.commands.cli import compose, print_problems
from cola_train.commands.config_file import CommandLine, read_command_line
from cola_train.commands.memory import TRAINING_CHECKS
from cola_train.config.checks import OF_THE_CONFIG, OF_THE_FILES, load
from cola_train.config.schema import Config
from cola_train.errors import EXIT_USER_ERROR, UserError
from cola_train.parallel.topology import Topology
from cola_train.run.folder import refuse_to_mix_runs
from cola_train.run.status import next_launch


def problems(config: Config, processes: int, gpus: int, elsewhere: bool) -> list[str]:
    """What keeps `config` from running.

    processes, gpus: of one node. elsewhere: this machine is none of the run's nodes.
    """
    found = [*disk_problems(config)]
    if config.resume == "never":
        found.append(
            "resume: never cannot go on after a restart or requeue; leave it out, with a run_dir "
            "that is new"
        )
    if 0 < gpus < processes:
        found.append(
            f"PROCESSES_PER_NODE: {processes}, but GPUS_PER_NODE is {gpus}; start one process a GPU"
        )
    if not elsewhere and distributed.gpus() < gpus:
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
    needed = checkpoints * checkpoint_bytes(config)
    held = sum(file.stat().st_size for file in run_dir.glob("checkpoints/step-*/*"))
    free = shutil.disk_usage(there).free
    if needed - held <= free:
        return []
    return [
        f"run_dir: {there} has {free / 1e9:.1f} GB free, {checkpoints} checkpoints take "
        f"{needed / 1e9:.1f} GB; free some space, lower checkpoint.keep, or choose another run_dir"
    ]


def checkpoint_bytes(config: Config) -> int:
    """fp32 weights and the state of the optimizer."""
    state = partial(config.method.optimizer_elements, config.model, config.optim)
    return 4 * sum(weight.elements + state(weight) for weight in costs.weights(config))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cola_train.commands.preflight")
    for option in ("--nodes", "--processes-per-node", "--gpus-per-node"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--elsewhere", action="store_true", help="the run's nodes are others")
    parser.add_argument("--version", action="version", version=f"cola_train {__version__}")
    parser.add_argument("--config-dir", "-cd", help="a folder of groups of your own")
    parser.add_argument("overrides", nargs="*", help="a config file and overrides of cola-train's")
    options = parser.parse_args()
    processes, gpus = options.processes_per_node, options.gpus_per_node
    topology = Topology(options.nodes * processes, processes)
    checks = (*OF_THE_CONFIG, *OF_THE_FILES) if options.elsewhere else TRAINING_CHECKS
    line = CommandLine([], [])
    counts = {"NODES": options.nodes, "PROCESSES_PER_NODE": processes}
    try:
        if few := [name for name, count in counts.items() if count < 1]:
            raise UserError(*(f"{name}: must be at least 1, got {counts[name]}" for name in few))
        line = read_command_line(options.overrides, folder=options.config_dir)
        values = compose(line.overrides, line.problems, of_file=line.of_file)
        config = load(values, line.problems, topology=topology, checks=checks)
        if found := problems(config, processes, gpus, options.elsewhere):
            raise UserError(*found)
        refuse_to_mix_runs(config)
    except UserError as error:
        print_problems(error, line)
        sys.exit(EXIT_USER_ERROR)
    print(Path(config.run_dir).absolute())
    print(next_launch(Path(config.run_dir)))


if __name__ == "__main__":
    main()
