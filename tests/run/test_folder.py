"""A run's folder takes no other run for its own, and no absence for a fresh start."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import exit_code_of, losses, make_config, read_json, run_to_end

from cola_train.data.preparation import prepare
from cola_train.run.identity import recorded_identity
from cola_train.run.status import verdict


@pytest.fixture(scope="module")
def stopped(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    stop = ["train.steps=9", "train.stop_after=7", f"run_dir={run_dir}"]
    assert exit_code_of([*tiny, *stop]) == 0
    return run_dir


@pytest.fixture
def begun(tiny: list[str], stopped: Path, tmp_path: Path) -> tuple[list[str], Path]:
    """The overrides of a run that was stopped after 7 of 9 steps, and its folder."""
    run_dir = shutil.copytree(stopped, tmp_path / "run")
    return [*tiny, "train.steps=9", f"run_dir={run_dir}"], run_dir


def content(run_dir: Path) -> dict[str, bytes]:
    """Every file but the record of the latest start."""
    files = {path.relative_to(run_dir).as_posix(): path for path in run_dir.rglob("*")}
    starts = ("attempt.json", "status.json")
    return {n: p.read_bytes() for n, p in files.items() if p.is_file() and n not in starts}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.n_heads=8", "model.n_heads: 4 in the checkpoint, 8 here"),
        ("model.norm_eps=1e-5", "model.norm_eps: 1e-06 in the checkpoint, 1e-05 here"),
        ("model.rope_theta=5e5", "model.rope_theta: 10000.0 in the checkpoint, 500000.0 here"),
        ("method.activation=low_rank", "method.activation: both in the checkpoint, low_rank here"),
        ("method.rank=4", "method.rank: 8 in the checkpoint, 4 here"),
        ("method.ranks={q:4}", 'method.rank: 8 in the checkpoint, {"q": 4, "k": 8, '),
        ("method=full", "method: cola in the checkpoint, full here"),
        ("data.document_mask=false", "data.document_mask: true in the checkpoint, false here"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(begun, capsys, change, named):
    """Most of these have the checkpoint's names and shapes."""
    common, run_dir = begun
    before = content(run_dir)
    assert exit_code_of([*common, change]) == 2
    assert named in capsys.readouterr().err
    assert content(run_dir) == before


def test_other_data_are_named_by_the_options_of_then(begun, capsys):
    common, run_dir = begun
    before = content(run_dir)
    assert exit_code_of([*common, "data.max_files=50"]) == 2
    said = capsys.readouterr().err
    assert "it began with data.max_files=null, and this has data.max_files=50: set" in said
    (tokens,) = re.findall("data=tokens data.path=([^ ,]*)", said)
    assert content(run_dir) == before
    same = [word for word in common if not word.startswith("data")]
    assert exit_code_of([*same, "data=tokens", f"data.path={tokens}"]) == 0


def test_what_leaves_the_function_as_it_is_may_change(begun):
    common, run_dir = begun
    changes = ["recompute=cola_m", "kernels=torch", "train.micro_batch_size=2", "engine=deepspeed"]
    rank = "method.rank_ratio=0.25"  # what the model's hint gave
    run_to_end([*common, *changes, rank, "train.deterministic=false"])
    assert list(losses(run_dir)) == list(range(1, 10))


def test_what_has_changed_is_named_with_what_it_may_mean(begun, capsys):
    common, _ = begun
    changes = ["train.steps=90", "train.batch_size=16", "evaluation.tokens=512", "optim.clip=1.0",
               "train.micro_batch_size=4", "checkpoint.keep=3", "train.stop_after=8"]  # fmt: skip
    if not torch.cuda.is_available():
        changes += ["train.compile=null"]  # as false there: no change
    assert exit_code_of([*common, *changes]) == 0
    said = re.findall("changed since this run began: (.*)\n", capsys.readouterr().err)
    assert sorted(line for line in said if "run_dir" not in line) == [  # the fixture's copy
        "checkpoint.keep: 2 -> 3",
        "evaluation.tokens: 1024 -> 512 "
        "(validation losses before and after are not of the same tokens)",
        "optim.clip: 0.5 -> 1.0 (another optimizer from here on)",
        "the learning rate: 0.000616 at step 7, 0.00299 at step 8",
        "train.batch_size: 8 -> 16 (another number of tokens a step)",
        "train.micro_batch_size: null -> 4 (the same function, rounded otherwise)",
        "train.steps: 9 -> 90 (another schedule)",
        "train.stop_after: 7 -> 8",
    ]
    assert exit_code_of([*common, *changes]) == 0  # the folder's own by now
    assert "changed since" not in capsys.readouterr().err


def test_the_run_s_tokenizer_is_in_its_folder(begun, capsys):
    """The bytes of the prepared folder's, written once, and again where they were lost."""
    common, run_dir = begun
    made = prepare(make_config(*common).data) / "tokenizer.json"
    path = run_dir / "tokenizer.json"
    assert path.read_bytes() == made.read_bytes()
    written = path.stat().st_mtime_ns
    assert exit_code_of([*common, "train.stop_after=8"]) == 0
    assert path.stat().st_mtime_ns == written
    path.write_text("{")
    assert exit_code_of(common) == 0
    assert path.read_bytes() == made.read_bytes()
    assert not list(run_dir.glob("*.tmp-*"))
    path.unlink()
    path.mkdir()
    assert exit_code_of(common) == 2
    assert f"run_dir: cannot write {path}: Is a directory" in capsys.readouterr().err


def spoil(run_dir: Path) -> None:
    for file in run_dir.glob("checkpoints/*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])


def carry_off(run_dir: Path) -> None:
    (run_dir / "checkpoints").rename(run_dir.parent / "elsewhere")


def carry_off_early(run_dir: Path) -> None:
    """A folder of an earlier version, which kept no latest.json."""
    carry_off(run_dir)
    (run_dir / "latest.json").unlink()


def empty_link(run_dir: Path) -> None:
    """As a disk that is not mounted leaves it."""
    carry_off(run_dir)
    (run_dir.parent / "mount").mkdir()
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "mount")


def dangling_link(run_dir: Path) -> None:
    carry_off(run_dir)
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "gone")


@pytest.mark.parametrize("lose", [spoil, carry_off, carry_off_early, empty_link, dangling_link])
@pytest.mark.parametrize("resume", ["auto", "a path", "never"])
def test_a_run_without_its_checkpoints_does_not_begin_again(begun, capsys, lose, resume):
    common, run_dir = begun
    if resume == "a path":
        resume = shutil.copytree(run_dir, run_dir.parent / "other")
    lose(run_dir)
    before = content(run_dir)
    assert exit_code_of([*common, f"resume={resume}"]) == 2
    said = capsys.readouterr().err
    if lose is dangling_link:
        assert f"{run_dir}/checkpoints is no folder, or a link to one that is not there" in said
    elif resume == "never":
        assert f"resume: {run_dir} holds an earlier run" in said
    else:
        assert f"{run_dir} has a run at step 7 and no readable checkpoint" in said
    assert "choose another run_name" in said or "bring it back" in said
    after = content(run_dir)
    assert {name: after[name] for name in before} == before
    assert not (run_dir.parent / "gone").exists()


def test_a_run_that_died_before_its_first_checkpoint_begins_again(begun, capsys):
    common, run_dir = begun
    carry_off_early(run_dir)
    status = read_json(run_dir / "status.json") | {"state": "lost", "exit_code": 1}
    (run_dir / "status.json").write_text(json.dumps(status))
    assert exit_code_of(common) == 0
    assert "starting" in capsys.readouterr().err
    assert list(losses(run_dir)) == list(range(1, 10))


def test_a_finished_run_is_not_reported_as_another(begun, capsys):
    common, run_dir = begun
    assert exit_code_of(common) == 0
    before = content(run_dir)
    capsys.readouterr()
    assert exit_code_of([*common, "optim.weight_decay=0.3", "train.steps=6"]) == 2
    said = capsys.readouterr()
    assert "optim.weight_decay: 0.01 there, 0.3 here" in said.err
    assert "train.steps: 9 there, 6 here" in said.err
    assert "perplexity" not in said.out
    assert exit_code_of([*common, "train.z_loss=0.1"]) == 2
    assert "train.z_loss: 0.0 there, 0.1 here" in capsys.readouterr().err
    assert content(run_dir) == before
    same = ["train.batch_size=null", "train.batch_tokens=256", "method.rank=8"]  # as they were
    assert exit_code_of([*common, *same, "evaluation.tokens=512"]) == 0
    said = capsys.readouterr()
    assert "step 9 was the last one: nothing is trained" in said.err and "perplexity" in said.out


def test_an_option_of_its_method_is_of_a_finished_runs_recipe(tiny, tmp_path, capsys):
    """One that no checkpoint's identity has; `rank` in place of `rank_ratio` is the same."""
    common = [*tiny, "method=galore", f"run_dir={tmp_path / 'run'}", "train.steps=2"]
    assert exit_code_of(common) == 0
    capsys.readouterr()
    assert exit_code_of([*common, "method.refresh_every=1"]) == 2
    assert "method.refresh_every: null there, 1 here" in capsys.readouterr().err
    assert exit_code_of([*common, "method.rank=8"]) == 0


def test_an_earlier_versions_checkpoint_has_its_runs_config(begun):
    _, run_dir = begun
    checkpoint = run_dir / "checkpoints" / "step-00000007"
    saved = read_json(checkpoint / "state.json")["identity"]
    del saved["data.document_mask"]  # null in the config: the machine's to decide
    assert recorded_identity(checkpoint) == saved
    config = (run_dir / "config.yaml").read_text()
    earlier = config.replace("  rank_ratio: 0.25\n", "  cola_rank_ratio: 0.25\n", 1)
    earlier = earlier.replace("  activation: both\n", "  cola_activation: both\n", 1)
    assert earlier.count("  cola_") == 2
    (run_dir / "config.yaml").write_text(f"{earlier}gone: 1\n")  # as 5dacad5 called them
    assert recorded_identity(checkpoint) == saved
    (run_dir / "config.yaml").write_text("model: 60m")
    assert recorded_identity(checkpoint) == {}


def test_what_is_in_the_way_of_the_folders_files(begun, capsys):
    common, run_dir = begun
    shutil.rmtree(run_dir / "plots")
    (run_dir / "plots").touch()
    assert exit_code_of(common) == 0  # no plot, but a run
    assert f"{run_dir}/plots: the loss was not drawn" in capsys.readouterr().err
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").mkdir()
    assert exit_code_of(common) == 2
    assert f"{run_dir}/metrics.jsonl: cannot be written: Is a directory" in capsys.readouterr().err


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a scalar": lambda content: b"7",
    "a list": lambda content: b'["launch", 3]',
    "cut": lambda content: content[: content.index(b":")],
    "noise": lambda content: b"\xff\0\xfe{" * 9,
    "empty": lambda content: b"",
    "deep": lambda content: b"[" * 100_000,
    "another type": lambda content: content.replace(b'"launch": 1', b'"launch": "one"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "attempt.json"])
def test_damaged_bookkeeping_is_named_and_the_checkpoints_resume(begun, capsys, name, damage):
    common, run_dir = begun
    path = run_dir / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert exit_code_of(common) == 0
    said = capsys.readouterr().err
    still_good = (name, damage) == ("config.yaml", "another type")
    assert (f"{path}: damaged (" in said) is not still_good
    assert "resuming from" in said and list(losses(run_dir)) == list(range(1, 10))
    assert exit_code_of(common) == 0
    assert ": damaged (" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", [*DAMAGE, "no exit code"])
def test_a_damaged_status_says_nothing_of_the_end(begun, capsys, damage):
    _, run_dir = begun
    path = run_dir / "status.json"
    remove = lambda content: content.replace(b'"exit_code": 0', b'"exit_code": null')  # noqa: E731
    path.write_bytes(DAMAGE.get(damage, remove)(path.read_bytes()))
    assert verdict(run_dir, 1)[:2] == ("unknown", 1)
    assert f"{path}: damaged" in capsys.readouterr().err


def test_damaged_lines_of_metrics_are_dropped_and_named(begun, capsys):
    common, run_dir = begun
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1].replace(b'"step"', b'"stew"')
    lines[3] = b"\0\xff" * 40
    lines[4] = b"12"
    lines[5] = lines[5][:30]
    path.write_bytes(b"\n".join(lines))
    assert exit_code_of(common) == 0
    said = capsys.readouterr().err
    for number in (2, 4, 5, 6):
        assert f"{path}: line {number} is damaged and left out" in said
    assert list(losses(run_dir)) == [1, 3, 7, 8, 9]
    assert (run_dir / "plots" / "loss.png").exists()
    assert all(json.loads(line) for line in path.read_text().splitlines())
