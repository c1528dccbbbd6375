"""A SLURM of scripts and a comparison of made-up members, for tests of what is submitted when.

`python fake_cluster.py FOLDER` works on the comparison in FOLDER, in a clone as `clone` makes it.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sample_ledger

from cola_train.compare import journal, slurm
from cola_train.compare.journal import Journal, run_folder
from cola_train.compare.members import Member

# Its queue is a file of lines `NAME JOB INDEX`. A file `slow` makes a submission take a second.
SUBMIT = """#!/bin/bash
[[ -e slow ]] && { touch submitting; sleep 1; }
[[ -e refused ]] && { echo "error: no such partition" >&2; exit 2; }
[[ $1 == --sweep ]] || exit 3
job=$(($(cat job 2>/dev/null || echo 0) + 1)); echo $job >job
cp "$2" "lines.$job"; echo "$*" >"arguments.$job"
for ((i = 1; i <= $(wc -l <"$2"); i++)); do echo "$(basename "$2") $job $i" >>queue; done
echo $job
"""
SQUEUE = """#!/bin/bash
[[ -e down ]] && { echo "slurm_load_jobs error" >&2; exit 1; }
cat queue 2>/dev/null || true
"""


def clone(folder: Path) -> Path:
    """A folder with launch/submit.sh; returns that of the programs, for PATH."""
    programs = folder / "programs"
    for path, text in (
        (folder / slurm.SUBMIT, SUBMIT),
        (programs / "squeue", SQUEUE),
        (programs / "sbatch", "#!/bin/bash\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return programs


def member(arm: str, phase: Any = "lr", seed: int = 0) -> Member:
    lr = 0.001 if phase == "lr" else None
    given = (f"method={arm}", f"seed={seed}", f"optim.lr={lr or 0.002}")
    return Member(arm, phase, lr, seed, 10, phase == "final", 1e9, given, ("a=b c",))


class MadeUp:
    """Two arms: a short run each, and when that is done two whole ones."""

    def known(self, lines: Mapping[str, Any]) -> list[Member]:
        arms = ("full", "cola")
        found = [member(arm) for arm in arms]
        for arm in arms:
            if lines.get(member(arm).name, {}).get("state") == "done":
                found += [member(arm, "final", seed) for seed in range(2)]
        return found


def open_journal(folder: Path, retry: bool = False) -> Journal:
    """Whose runs are done by their status.json alone."""
    folder.mkdir(exist_ok=True)
    sample = sample_ledger.plan(["full", "cola"])
    line: Callable[[Member, Path], dict[str, Any]] = lambda each, _: {  # noqa: E731
        **sample_ledger.line(sample, each.arm, each.phase, each.seed, each.lr),
        "member": each.name, "key": each.key,
    }  # fmt: skip
    journal.done_line = line
    return Journal(folder, MadeUp(), retry)  # type: ignore[arg-type]


def end(folder: Path, each: Member, state: str = "done", code: int = 0, launch: int = 1) -> None:
    """As if a run of the member had ended so."""
    run_dir = run_folder(folder, each)
    run_dir.mkdir(parents=True, exist_ok=True)
    claim = {"launch": launch, "attempt": 1, "token": "a", "host": "n1", "pid": 1}
    (run_dir / "attempt.json").write_text(json.dumps(claim))
    status = {"state": state, "exit_code": code, "step": 10, "message": "it said so", **claim}
    (run_dir / "status.json").write_text(json.dumps(status))


if __name__ == "__main__":
    sys.exit(slurm.Slurm(Path(sys.argv[1])).run(open_journal(Path(sys.argv[1]))))
