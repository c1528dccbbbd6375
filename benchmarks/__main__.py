"""The runner: `python -m benchmarks NAME [options] [overrides] [--json FILE]`."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks.report import Benchmark, machine
from cola_train import distributed
from cola_train.config.fields import unknown
from cola_train.errors import EXIT_DONE, EXIT_USER_ERROR, UserError

# Name to module, which holds a `BENCHMARK`; a new one is one line here.
REGISTRY = {
    "train_step": "benchmarks.train_step",
    "methods": "benchmarks.methods",
    "recipe": "benchmarks.recipe",
    "peers": "benchmarks.peers",
    "python_time": "benchmarks.python_time",
    "official": "benchmarks.official",
    "bigram": "benchmarks.bigram",
    "kernels": "benchmarks.kernels",
    "decode_kernels": "benchmarks.decode_kernels",
    "gpu": "benchmarks.gpu",
    "recompute": "benchmarks.recompute",
    "recompute_curve": "benchmarks.recompute_curve",
    "planning": "benchmarks.planning",
    "scaling": "benchmarks.scaling",
    "fp8": "benchmarks.fp8",
    "inference": "benchmarks.inference",
    "factor": "benchmarks.factor",
    "theory": "benchmarks.theory",
    "health": "benchmarks.health",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that the command line names; returns the exit code."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview())
            return EXIT_DONE
        return run(arguments[0], arguments[1:])
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        distributed.stop()


def run(name: str, arguments: list[str]) -> int:
    """Print what benchmark `name` finds, and write it to the file of `--json`.

    Raises:
        UserError: there is no such benchmark, or it cannot run as asked.
    """
    if name not in REGISTRY:
        raise UserError(unknown(name, list(REGISTRY), "benchmark"))
    if distributed.world_size() > 1:
        raise UserError("torchrun: benchmarks run in one process; use `python -m benchmarks`")
    benchmark = load(name)
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=benchmark.summary)
    parser.add_argument("overrides", nargs="*", help="config options, as cola-train takes them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    benchmark.add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"--json: the folder {options.json.parent} does not exist; make it first")

    report = benchmark.run(options)
    about = machine(distributed.device())
    print(report.text)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if options.json:
        command = ["python", "-m", "benchmarks", name, *arguments]
        everything = {"benchmark": name, "command": command, "machine": about, **report.figures}
        try:
            options.json.write_text(json.dumps(everything, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--json: cannot write {options.json}: {error.strerror}") from error
    return report.exit_code


def load(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        UserError: a package that it needs is not installed.
    """
    try:
        benchmark: Benchmark = importlib.import_module(REGISTRY[name]).BENCHMARK
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: needs {error.name}, which is not installed") from error
    return benchmark


def overview() -> str:
    lines = []
    for name in REGISTRY:
        try:
            lines.append(f"  {name:16}{load(name).summary}")
        except UserError as error:
            lines.append(f"  {error}")
    usage = "usage: python -m benchmarks NAME [options] [overrides] [--json FILE]"
    return "\n".join(
        [usage, "", *lines, "", "`python -m benchmarks NAME --help` lists its options"]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
