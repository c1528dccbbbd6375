"""What tests/workers/scaling_worker.py measures beside what is planned."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from helpers import result_of_worker


def measure(what: str, processes: int, shape: list[str], cases: list[str], folder: Path) -> Any:
    """`memory` or `traffic` of each case, in one process group; without DeepSpeed fewer cases."""
    if find_spec("deepspeed") is None:
        cases = [case for case in cases if "deepspeed" not in case]
    common = json.dumps([*shape, f"run_dir={folder / 'run'}", "train.threads=1"])
    return result_of_worker("scaling_worker.py", what, common, *cases, processes=processes)
