"""The scripts of launch/ without a cluster: lint, dry runs, what they refuse, and their README."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, child_environment, finish, losses, read_json, wait_for_step
from slurm_cluster import free_ports

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
    installers = [f"tests/install_{name}.sh" for name in ("slurm", "chromium")]
    subprocess.run(["shellcheck", "-x", *SCRIPTS, *installers], check=True, cwd=REPOSITORY)


def test_readme_has_every_option():
    readme = (LAUNCH / "README.md").read_text()
    settings = re.findall(r'^: "\$\{(\w+):=', (LAUNCH / "cluster.sh").read_text(), re.M)
    options = re.findall(r"(--[a-z-]+)\)", (LAUNCH / "submit.sh").read_text())
    assert len(settings) > 15 and "--sweep" in options
    assert [name for name in [*settings, *options] if f"`{name}" not in readme] == []


def test_usage_names_every_option(environment):
    for script in ("submit.sh", "torchrun.sh"):
        options = set(re.findall(r"^ +(--[a-z-]+)\)", (LAUNCH / script).read_text(), re.M))
        assert "--dry-run" in options
        for flag in (["-h"], ["model=1b", "--help"]):
            usage, errors = run(script, flag, environment)
            assert f"launch/{script} [--dry-run]" in usage and errors == ""
            assert all(option in usage for option in options)


@pytest.mark.parametrize("script", ["submit.sh", "torchrun.sh"])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--dryrun", "model=1b"], "--dryrun: no such option"),
        (["model=1b", "--cfg"], "--cfg: no such option"),
        (["-n", "2"], "-n: no such option"),
        (["--sweep"], "--sweep: "),
        (["--at-once", "2"], "--at-once: "),
    ],
)
def test_options_that_are_no_use_are_named(environment, script, arguments, named):
    output, errors = run(script, arguments, environment, expect=2)
    assert errors.startswith(f"error: {named}") and errors.count("\n") == 1 and output == ""


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
        ({"PYTHON": "/bin/false"}, [], "PYTHON: /bin/false cannot import cola_train"),
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
    assert named.startswith("PYTHON:") or "cannot import" not in errors


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
@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["resume={}"], 2, "resume={} names no good checkpoint"),
        (["optim.lr=1e12", "optim.warmup_steps=0", "optim.clip=null"], 1, "training diverged: "),
    ],
    ids=["a mistake", "a divergence"],
)
def test_torchrun_starts_no_failed_run_again(tiny, tmp_path, environment, overrides, code, message):
    """torchrun itself would, RESTARTS times; the last words are the trainer's."""
    run_dir = tmp_path / "run"
    overrides, message = [word.format(tmp_path) for word in overrides], message.format(tmp_path)
    arguments = [*tiny, "train.steps=3", f"run_dir={run_dir}", *overrides]
    _, errors = run("torchrun.sh", arguments, environment, expect=code)
    assert read_json(run_dir / "attempt.json")["attempt"] == 1
    assert f"\n{run_dir}: failed, exit code {code}\n{message}" in errors
    assert errors.endswith(read_json(run_dir / "status.json")["message"] + "\n")
    assert "Traceback" not in errors


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (LAUNCH / "README.md").read_text(), re.S)
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands(tiny, tmp_path, environment, command):
    """Each as it stands there, on a tiny model, with sbatch's stand-in."""
    (tmp_path / "sweep.txt").write_text("run_name=a\nrun_name=b optim.lr=1e-3\n")
    head = f"localhost:{free_ports(1)[0]}"
    changes = {"node1:29400": head, "/scratch/me": str(tmp_path), "sweep.txt": "$TMP/sweep.txt"}
    for there, here in changes.items():
        command = command.replace(there, here)
    if command.startswith("make "):
        command = command.replace("make", "make -n")
    elif command.startswith("launch/") or "torchrun.sh" in command:
        in_tmp = [] if "run_dir=" in command else [f"run_dir={tmp_path}/${{run_name}}"]
        command += " " + shlex.join([*tiny, "model.n_heads=4", "train.steps=2", *in_tmp])
    environment |= {"EDITOR": "true", "TMP": str(tmp_path), "SWEEP_LOGS": str(tmp_path / "sweeps")}
    machines = [
        subprocess.Popen(
            command, shell=True, cwd=REPOSITORY, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        for _ in range(2 if "NODES=2" in command else 1)
    ]  # fmt: skip
    for machine in machines:
        output, errors = finish(machine, expect=0)
        if "torchrun" in command:
            assert ": done, exit code 0" in errors
        if "submit" in command:
            assert ("sbatch --nodes" if "--dry-run" in command else "submitted") in output


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
