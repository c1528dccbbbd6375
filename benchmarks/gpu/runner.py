"""A part in a process of its own, which is killed at its limit and leaves what it has recorded."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Outcome
from benchmarks.gpu.sizes import Sizes
from cola_train.files import read_json

ROOT = Path(__file__).parents[2]
FAULT_LINES = 12


def run_part(
    name: str, sizes: Sizes, seconds: float, folder: Path, earlier: Mapping[str, Outcome]
) -> Outcome:
    """Run one part for at most so many seconds. folder: for its files while it runs."""
    record, errors = folder / f".{name}.json", folder / f".{name}.stderr"
    record.unlink(missing_ok=True)
    given = {
        "dry_run": sizes.dry_run,
        "record": str(record.resolve()),
        "earlier": {part: outcome.figures for part, outcome in earlier.items()},
    }
    start = time.monotonic()
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.part", name],
            cwd=ROOT, env=environment(sizes.dry_run), stdin=subprocess.PIPE, stderr=stderr,
            stdout=sys.stderr, text=True, start_new_session=True,
        )  # fmt: skip
        end = wait(process, json.dumps(given), seconds)
    outcome = Outcome(end, time.monotonic() - start, seconds)
    if end == "failed":
        outcome.fault = "\n".join(errors.read_text().splitlines()[-FAULT_LINES:])
    with contextlib.suppress(OSError, ValueError):  # it may have come to nothing
        found: dict[str, Any] = read_json(record)
        outcome.device, outcome.versions = found["device"], found["versions"]
        outcome.figures = found["figures"]
    outcome.good = end != "failed" and all(
        figure.get("good", True) for figure in outcome.figures.values() if isinstance(figure, dict)
    )
    record.unlink(missing_ok=True)
    errors.unlink(missing_ok=True)
    return outcome


def wait(process: "subprocess.Popen[str]", given: str, seconds: float) -> str:
    """How the process ends; nothing of its session is left."""
    try:
        process.communicate(given, timeout=seconds)
        return "done" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "cut"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(dry_run: bool) -> dict[str, str]:
    variables = dict(os.environ)
    variables.pop("CUBLAS_WORKSPACE_CONFIG", None)  # torch parses it at each matmul: 60 us
    variables.pop("TRITON_INTERPRET", None)
    if dry_run:
        variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return variables
