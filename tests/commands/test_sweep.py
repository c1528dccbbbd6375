"""What a job of a sweep may leave in its process: nothing."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from helpers import exit_code_of, finish, launch, losses, run_to_end, wait_for_step

from cola_train.commands.sweep import clean_state


def test_variables_and_handlers_are_put_back_also_after_a_fault():
    before, handler = dict(os.environ), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(ValueError, match="a fault"), clean_state():
        os.environ["DS_ACCELERATOR"] = "none"
        os.environ.pop("PATH")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise ValueError("a fault")
    assert dict(os.environ) == before and signal.getsignal(signal.SIGUSR1) is handler


def test_a_job_that_fails_is_named_and_the_next_one_runs(tiny, tmp_path: Path):
    sweep = ["optim.warmup_steps=0,99,1", "train.steps=2", f"hydra.sweep.dir={tmp_path}"]
    output = run_to_end(["-m", *tiny, *sweep, f"run_dir={tmp_path}/${{run_name}}"], expect=2)
    assert "| failed: optim.warmup_steps: 99 is more than" in output.splitlines()[-3]
    assert output.count("error: ") == 1 and "Traceback" not in output
    assert "error: optim.warmup_steps: 99 is more than train.steps (2)" in output
    folders = [path.parent for path in tmp_path.glob("*/metrics.jsonl")]
    assert len(folders) == 2 and all(list(losses(folder)) == [1, 2] for folder in folders)


def test_a_signal_ends_the_sweep(tiny, tmp_path: Path):
    sweep = ["seed=1,2", "train.steps=4000", f"hydra.sweep.dir={tmp_path}"]
    process = launch(["-m", *tiny, *sweep, f"run_dir={tmp_path}/${{seed}}"])
    wait_for_step(tmp_path / "1", 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = finish(process, expect=75)
    assert not (tmp_path / "2").exists()
    stopped, later = output[output.index("| seed") :].splitlines()[2:4]
    assert stopped.endswith("| stopped |") and later.endswith("| not started |")


def test_jobs_do_not_go_on_with_each_others_runs(tiny, tmp_path: Path, capsys):
    """A folder for all is refused before the first job, what turns out to be one at the second."""
    sweep = ["-m", *tiny, "seed=3,4", "train.steps=2", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert exit_code_of([*sweep, f"run_dir={tmp_path}/one"]) == 2
    assert f"or write 'run_dir={tmp_path}/one/${{run_name}}'" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
    output = run_to_end([*sweep, f"run_dir={tmp_path}/${{model.name}}"], expect=2)
    assert f"run_dir: {tmp_path}/small is the folder of an earlier job of this sweep" in output
    assert list(losses(tmp_path / "small")) == [1, 2] and output.count(", perplexity") == 2


OWN = """
run_name: own
model: mine
data: {{source: text, files: ["{corpus}/*.txt"], cache_dir: cache, workers: 1}}
train: {{steps: 3, batch_size: 8, sequence_length: 32, precision: fp32, threads: 1}}
evaluation: {{tokens: 1024, batch_size: 8, sample_tokens: 0}}
tracking: {{wandb: disabled, progress: false}}
"""
SIZE = """
name: mine
vocab_size: 300
d_model: 48
d_ff: 64
n_layers: 2
n_heads: 4
rank_ratio: 0.25
activation: both
"""


def test_from_an_empty_folder_to_the_table_of_a_sweep(corpus, tmp_path, monkeypatch, capfd):
    """A config file and a size of one's own, two jobs, their results with the best one first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cola-train"])
    Path("model").mkdir()
    Path("model/mine.yaml").write_text(SIZE)
    Path("my.yaml").write_text(OWN.format(corpus=corpus))
    assert exit_code_of(["my.yaml", "optim.lr=1e-5,1e-2", "seed=7", "-m"]) == 0
    out = capfd.readouterr().out
    table = out[out.index("| optim.lr") :].splitlines()
    assert [row.split("|")[1].strip() for row in table[:4] if "-|-" not in row] == [
        "optim.lr", "0.01", "1e-05",
    ]  # fmt: skip
    (results,) = Path("outputs/sweeps").glob("*/results.json")
    assert "\n".join(table[:4]) in results.with_suffix(".md").read_text()
    best, worst = json.loads(results.read_text())
    assert best["run_dir"] == "outputs/own+optim.lr-0.01" and best["state"] == "done"
    assert best["metrics"]["val_loss"] < worst["metrics"]["val_loss"]
    assert (
        best["metrics"]["step"] == 3
        and "d_model: 48" in Path(best["run_dir"], "config.yaml").read_text()
    )
