"""The scripts of launch/ without a cluster: lint, dry runs, what they refuse, and their README."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, child_environment, finish, losses, read_json, wait_for_step

LAUNCH = REPOSITORY / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]

# What launch/submit.sh asks of SLURM; tests/test_slurm.py has the real one.
SBATCH = '#!/bin/sh\n[ "$1" = --test-only ] && exit ${REFUSED:-0}\necho submitted\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    return child_environment(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        GPUS_PER_NODE="0",
        CPUS_PER_PROCESS="1",
    )


def start(script: str, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAUNCH / script, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def run(
    script: str, arguments: list[str], environment: dict[str, str], expect: int = 0
) -> tuple[str, str]:
    return finish(start(script, arguments, environment), expect)


def test_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck; tests/install_slurm.sh (root, Debian) installs it")
    subprocess.run(["shellcheck", "-x", *SCRIPTS, "tests/install_slurm.sh"], check=True,
                   cwd=REPOSITORY)  # fmt: skip


def test_readme_has_every_option():
    readme = (LAUNCH / "README.md").read_text()
    settings = re.findall(r'^: "\$\{(\w+):=', (LAUNCH / "cluster.sh").read_text(), re.M)
    options = re.findall(r"(--[a-z-]+)\)", (LAUNCH / "submit.sh").read_text())
    assert len(settings) > 15 and "--sweep" in options
    assert [name for name in [*settings, *options] if f"`{name}" not in readme] == []


def test_dry_runs_show_the_whole_command_and_start_nothing(tiny, tmp_path, environment):
    run_dir = tmp_path / "a run"
    overrides = ["--dry-run", *tiny, f"run_dir={run_dir}"]
    output, _ = run("torchrun.sh", overrides, environment | {"NODES": "2", "HEAD": "n1:29400"})
    assert "--nnodes 2" in output and "--rdzv-endpoint n1:29400" in output
    assert r"a\ run/logs" in output and "-m cola_train" in output and "data=text" in output
    settings = {"PARTITION": "gpu", "TIME": "10", "NODES": "2", "SBATCH_ARGUMENTS": "--exclusive"}
    output, _ = run("submit.sh", overrides, environment | settings)
    for part in ("sbatch", "--nodes=2", "--partition=gpu", "--time=10", "--exclusive", "USR1@180",
                 "launch/slurm.sbatch", "data=text"):  # fmt: skip
        assert part in output
    assert "submitted" not in output
    subprocess.run([*["bash"], LAUNCH / "cluster.sh", "--dry-run"], check=True)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("settings", "overrides", "named"),
    [
        ({}, ["train.stepz=1"], "`train.steps`"),
        ({"PROCESSES_PER_NODE": "3"}, [], "do not divide among 3 processes"),
        ({}, ["run_dir=/proc/run"], "run_dir: /proc"),
        ({}, ["model.d_model=65536", "model.d_ff=9999999", "method=full"], "GB free"),
        ({"NODES": "0"}, [], "NODES: must be at least 1, got 0"),
        ({"PYTHON": "/bin/false"}, [], "PYTHON"),
        ({"REFUSED": "1"}, [], "SLURM would refuse"),
        (
            {"GPUS_PER_NODE": "8", "PROCESSES_PER_NODE": "16"},
            ["train.batch_size=16"],
            "PROCESSES_PER_NODE: 16, but GPUS_PER_NODE is 8",
        ),
        ({}, ["resume=never"], "resume: never cannot go on"),
    ],
)
def test_refused_before_it_waits_in_a_queue(
    tiny, tmp_path, environment, settings, overrides, named
):
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", *overrides]
    output, errors = run("submit.sh", arguments, environment | settings, expect=2)
    assert named in errors and "submitted" not in output


def test_too_few_gpus_are_refused_where_the_run_would_be(tiny, tmp_path, environment):
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}"]
    settings = {"GPUS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": ""}
    _, errors = run("torchrun.sh", arguments, environment | settings, expect=2)
    assert "GPUS_PER_NODE: 8, but this node offers 0" in errors


def test_a_login_node_without_a_gpu_submits_what_needs_one(tiny, tmp_path, environment):
    needs_gpu = ["kernels=triton", "model.attention=flash", "train.precision=bf16"]
    arguments = ["--dry-run", *tiny, *needs_gpu, f"run_dir={tmp_path / 'run'}"]
    settings = {"GPUS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": ""}
    output, _ = run("submit.sh", arguments, environment | settings)
    assert "--gres=gpu:8" in output
    _, errors = run("torchrun.sh", arguments, environment | settings, expect=2)
    assert "kernels: triton cannot run here" in errors


@pytest.mark.parametrize(
    ("lines", "code", "named"),
    [
        ("run_dir={}/a\nrun_dir={}/b", 0, "--array=1-2"),
        ("run_dir={}/a optim.lr='1e-3\n", 2, "cannot be split into overrides: run_dir="),
    ],
    ids=["no newline at the end", "a quote without its partner"],
)
def test_every_word_of_a_sweep_is_submitted(tiny, tmp_path, environment, lines, code, named):
    sweep = tmp_path / "sweep"
    sweep.write_text(lines.format(tmp_path, tmp_path))
    output, errors = run(
        "submit.sh", ["--dry-run", "--sweep", str(sweep), *tiny], environment, expect=code
    )
    assert named in output + errors


def test_sweep_lines_must_differ_in_their_folder(tiny, tmp_path, environment):
    sweep = tmp_path / "sweep"
    sweep.write_text("optim.lr=1e-3\noptim.lr=2e-3\n")
    arguments = ["--sweep", str(sweep), *tiny, f"run_dir={tmp_path / 'run'}"]
    _, errors = run("submit.sh", arguments, environment, expect=2)
    assert "give each a run_name" in errors


@pytest.mark.slow
def test_torchrun_passes_signals_on_and_exits_with_the_trainers_code(tiny, tmp_path, environment):
    """USR1 to the script: the run saves, and the script says 75, though torchrun does not."""
    run_dir = tmp_path / "run"
    common = [*tiny, "train.steps=4000", "checkpoint.every=0", f"run_dir={run_dir}"]
    process = start("torchrun.sh", common, environment)
    wait_for_step(run_dir, 5, process)
    process.send_signal(signal.SIGUSR1)
    finish(process, expect=75)
    stopped = read_json(run_dir / "status.json")
    assert (stopped["state"], stopped["step"]) == ("stopped", max(losses(run_dir)))
    assert "SIGUSR1" in next(run_dir.glob("logs/*/attempt_0/0/stderr.log")).read_text()
