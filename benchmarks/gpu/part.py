"""One part, in its process: `python -m benchmarks.gpu.part NAME`, what it is given on stdin."""

import functools
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks.gpu.parts import PARTS, Given, Record
from benchmarks.gpu.sizes import FULL, TINY
from cola_train import distributed, hardware
from cola_train.files import write_json


def main() -> None:
    (name,) = sys.argv[1:]
    given = json.load(sys.stdin)
    if given["dry_run"]:
        stand_in()
    about = {"device": hardware.device_name(distributed.device()), "versions": versions()}
    file = Path(given["record"])
    record = Record(lambda figures: write_json(file, {**about, "figures": figures}))
    sizes = TINY if given["dry_run"] else FULL
    PARTS[name].module.measure(Given(sizes, given["earlier"]), record)
    distributed.stop()


def versions() -> dict[str, str]:
    of = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        of["cuda"] = torch.version.cuda
    for package in ("triton", "numpy"):
        try:
            of[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            of[package] = "not installed"
    return of


def stand_in() -> None:
    """In a dry run: the compiler's back end, which takes minutes on a CPU, is left out."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")


if __name__ == "__main__":
    main()
