"""Stop, reshape, damage: a resumed run is the undisturbed run. (test_chaos.py kills.)"""

import shutil
import signal

import pytest
from helpers import exit_code_of, finish, launch, losses, run_to_end, wait_for_step

from cola_train.run.metrics import read_metrics


@pytest.mark.slow
def test_four_processes_then_two_then_one(tiny, tmp_path):
    """The same run on another number of processes differs by rounding alone."""
    common = [*tiny, "train.steps=18", "train.micro_batch_size=2", f"run_dir={tmp_path / 'moved'}"]
    run_to_end([*common, "train.stop_after=6"], processes=4)
    run_to_end([*common, "train.stop_after=12"], processes=2)
    assert exit_code_of(common) == 0
    assert exit_code_of([*tiny, "train.steps=18", f"run_dir={tmp_path / 'one'}"]) == 0
    moved, one = losses(tmp_path / "moved"), losses(tmp_path / "one")
    assert list(moved) == list(one) == list(range(1, 19))
    # fp32 sums in another order: about 1e-7 a step, which 18 Adam steps amplify
    assert moved == pytest.approx(one, rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "processes"), [("hybrid", 4), ("replicate", 2)])
def test_sharding_strategies_agree(tiny, tmp_path, sharding, processes):
    common = [*tiny, "train.steps=6"]
    assert exit_code_of([*common, f"run_dir={tmp_path / 'one'}"]) == 0
    common += [f"engine.sharding={sharding}"]
    common += ["engine.shard_size=2"] if sharding == "hybrid" else []
    run_to_end([*common, f"run_dir={tmp_path / 's'}"], processes)
    assert losses(tmp_path / "s") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_exits_75(tiny, tmp_path, capsys, number):
    common = [*tiny, "train.steps=400", "checkpoint.every=0", f"run_dir={tmp_path / 'run'}"]
    common.append("evaluation.every=1")  # also after the last step before the signal
    process = launch(common)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    output, _ = finish(process, expect=75)
    assert signal.Signals(number).name in output
    stopped = max(losses(tmp_path / "run"))
    assert exit_code_of([*common, f"train.stop_after={stopped + 2}"]) == 0
    said = capsys.readouterr().err
    assert f"resuming from {tmp_path / 'run' / 'checkpoints' / f'step-{stopped:08d}'}" in said
    assert list(losses(tmp_path / "run")) == list(range(1, stopped + 3))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    starts = {line["step"]: line["attempt"] for line in lines if "attempt" in line}
    assert starts == {stopped + 1: 2}
    validated = [line["step"] for line in lines if "val_loss" in line]
    assert validated == list(range(1, stopped + 3))


def test_damaged_checkpoint_is_passed_over(tiny, tmp_path, capsys):
    common = [*tiny, "train.steps=30", f"run_dir={tmp_path / 'run'}"]
    assert exit_code_of([*common, "train.stop_after=12"]) == 0
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    tensors = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    capsys.readouterr()
    assert exit_code_of([*common, "train.stop_after=14"]) == 0
    said = capsys.readouterr().err
    assert tensors.name in said and "resuming from" in said and "step-00000010" in said
    one = [*tiny, "train.steps=30", "train.stop_after=14", f"run_dir={tmp_path / 'one'}"]
    assert exit_code_of(one) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


def test_started_again_after_the_end_trains_no_further(tiny, tmp_path, capsys):
    common = [*tiny, "train.steps=3", f"run_dir={tmp_path / 'run'}"]
    assert exit_code_of(common) == 0
    before = (tmp_path / "run" / "checkpoints" / "step-00000003").stat().st_mtime_ns
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert exit_code_of(common) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines
    said = capsys.readouterr()
    assert "resuming" in said.err and "perplexity" in said.out
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").stat().st_mtime_ns == before


def test_a_path_is_where_a_run_begins_and_its_own_checkpoint_where_it_goes_on(
    tiny, tmp_path, capsys
):
    old, new = tmp_path / "old", tmp_path / "new"
    assert exit_code_of([*tiny, "train.steps=12", "train.stop_after=3", f"run_dir={old}"]) == 0
    common = [*tiny, "train.steps=12", f"resume={old}", f"run_dir={new}"]
    assert exit_code_of([*common, "train.stop_after=6"]) == 0
    assert f"resuming from {old}/checkpoints/step-00000003" in capsys.readouterr().err
    shutil.rmtree(old)
    assert exit_code_of([*common, "train.stop_after=8"]) == 0
    own = new / "checkpoints" / "step-00000006"
    assert f"resume={old} is where this run began; it goes on from {own}" in capsys.readouterr().err
    assert list(losses(new)) == list(range(4, 9))
