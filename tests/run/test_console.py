"""What a run prints may find nobody there; the run goes on."""

import io
import subprocess
import sys

import pytest
from helpers import REPOSITORY, child_environment, exit_code_of, losses, read_json

from cola_train.run.console import Console


@pytest.mark.parametrize(
    ("shell", "failed"),
    [
        ("2>&1 | head -n 1", ["stdout", "stderr"]),
        ("2>/dev/full", ["stderr"]),
        (">/dev/full", ["stdout"]),
        ("2>&- >&-", []),
    ],
    ids=["reader gone", "full disk under stderr", "full disk under stdout", "closed"],
)
def test_a_console_that_fails_is_said_once_and_trained_on(tiny, tmp_path, shell, failed):
    run_dir = tmp_path / "run"
    overrides = [*tiny, "train.steps=12", "tracking.progress=true", f"run_dir={run_dir}"]
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "cola_train", *overrides])
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} {shell}"],
        cwd=REPOSITORY,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    status = read_json(run_dir / "status.json")
    assert (status["state"], status["step"]) == ("done", 12)
    assert [name for name in ("stdout", "stderr") if f"{name} failed" in status["message"]] == (
        failed
    )
    if failed == ["stdout"]:
        assert ended.stderr.count("stdout failed ([Errno 28] No space left on device)") == 1
    assert list(losses(run_dir)) == list(range(1, 13))
    assert (run_dir / "checkpoints/step-00000012").is_dir()


def test_what_a_console_cannot_encode_is_written_in_another_way():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(stream, "stdout")
    print("caf\xe9 \ufffd", file=console, flush=True)
    assert stream.buffer.getvalue() == b"caf\\xe9 \\ufffd\n" and console.failure is None


def test_weights_gone_bad_are_a_divergence(tiny, tmp_path, capsys):
    """Not `lost`, which would start the run again: it would diverge again."""
    run_dir = tmp_path / "run"
    bad = ["optim.lr=1e12", "optim.warmup_steps=0", "train.steps=3", "optim.clip=null"]
    bad += ["checkpoint.every=2"]  # a step that is skipped is not saved
    assert exit_code_of([*tiny, *bad, f"run_dir={run_dir}"]) == 1
    said = capsys.readouterr().err
    assert "error: training diverged: the validation loss after step 3 is nan" in said
    assert "there is no checkpoint yet, and a lower optim.lr may help" in said
    assert read_json(run_dir / "status.json")["state"] == "failed"
    assert not list(run_dir.glob("checkpoints/step-*"))
