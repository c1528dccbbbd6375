"""Configs as a user's overrides make them, and runs as a user starts them."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from cola_train.commands.cli import check_overrides, compose
from cola_train.config.checks import load
from cola_train.config.schema import Config

REPOSITORY = Path(__file__).parents[1]


def make_config(*overrides: str) -> Config:
    """The config that `cola-train OVERRIDES` would run."""
    good, problems = check_overrides(list(overrides))
    return load(compose(good, problems), problems)


def launch(
    overrides: list[str],
    processes: int = 0,
    restarts: int = 0,
    output: IO[str] | int = subprocess.PIPE,
    **variables: str,
) -> subprocess.Popen[str]:
    """Start `python -m cola_train`, under torchrun for 1 or more processes, in its own group.

    restarts: of all its processes by torchrun when one has died. variables: of the environment.
    """
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]  # fmt: skip
    defaults = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes else []), "-m", "cola_train", *overrides],
        cwd=REPOSITORY,
        env={**os.environ, **defaults, **variables},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ranks_of(agent: int) -> dict[int, int]:
    """Rank -> process id of the processes that a torchrun has started."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        with contextlib.suppress(OSError):  # it is ending
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(v[5:]): int(child) for v in environment if v.startswith(b"RANK=")}
    return found


def run_to_end(overrides: list[str], processes: int = 0, expect: int = 0) -> str:
    """The output of a run that must end with exit code `expect`."""
    process = launch(overrides, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expect, output
    return output


def losses(run_dir: Path) -> dict[int, float]:
    """Step to training loss, from metrics.jsonl; a step logged twice fails."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
