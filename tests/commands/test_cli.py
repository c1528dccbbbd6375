"""The command line: contracts, and what a user's broken files say."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import exit_code_of, losses, make_config, run_forked, run_python, run_to_end

from cola_train import __version__
from cola_train.config.fields import field_types
from cola_train.config.schema import Config
from cola_train.data.preparation import prepare


def bad_files(tmp_path: Path, tiny: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> (overrides, what the message must name); makes the files."""
    few, others = tmp_path / "few.txt", tmp_path / "others.txt"
    few.write_text("a few words. " * 3)
    others.write_text("other words. " * 3)
    objects = tmp_path / "objects.jsonl"
    objects.write_text(json.dumps({"content": "text"}) + "\n")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps({"text": "word " * 9999}).encode())[:50])
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    binary = tmp_path / "tokenizer.json"
    binary.write_text("{}")
    no_text = ["data.text_field", "objects.jsonl", "content"]
    return {
        "corpus shorter than a batch": (
            [f"data.files=[{few}]", f"data.validation_files=[{others}]"], ["train.batch_size"]
        ),
        "field missing": ([f"data.files=[{objects}]"], no_text),
        "gzip cut short": ([f"data.files=[{cut}]"], ["cut.json.gz"]),
        "folder cannot be made": ([f"run_dir={in_the_way}/run"], ["run_dir", str(in_the_way)]),
        "no tokenizer": ([f"data.tokenizer={binary}"], ["data.tokenizer", str(binary)]),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "corpus shorter than a batch",
        "field missing",
        "gzip cut short",
        "folder cannot be made",
        "no tokenizer",
    ],
)
def test_bad_files_exit_2(tiny, tmp_path, capsys, case):
    overrides, named = bad_files(tmp_path, tiny)[case]
    assert exit_code_of([*tiny, f"run_dir={tmp_path / 'run'}", *overrides]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in named), err
    assert "Traceback" not in err


def test_bad_checkpoints_exit_2(tiny, tmp_path, capsys):
    common = [*tiny, "train.steps=2", f"run_dir={tmp_path / 'run'}"]
    assert exit_code_of(common) == 0
    assert exit_code_of([*common, "resume=never"]) == 2
    assert "remove the folder" in capsys.readouterr().err
    assert exit_code_of([*common, "model.d_model=64"]) == 2
    assert "model.d_model: 32 in the checkpoint, 64 here" in capsys.readouterr().err
    assert exit_code_of([*common, "seed=1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_damaged_shard_exits_2(tiny, tmp_path, capsys):
    config = make_config(*tiny)
    folder = shutil.copytree(prepare(config.data, config.model.vocab_size), tmp_path / "shards")
    common = [word for word in tiny if not word.startswith("data")]
    arguments = [*common, "data=tokens", f"data.path={folder}", "train.steps=1"]
    assert exit_code_of([*arguments, f"run_dir={tmp_path / 'good'}"]) == 0
    shard = folder / "train-00000.tokens.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert exit_code_of([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    assert shard.name in capsys.readouterr().err


def hydra_command(*arguments: str) -> str:
    return run_forked("-m", "cola_train", *arguments).stdout


def test_cfg():
    shown = yaml.safe_load(hydra_command("--cfg", "job", "model=60m"))
    assert shown["model"]["d_model"] == 512
    assert set(shown) == {name for name in field_types(Config) if "." not in name}


def test_multirun(tiny, tmp_path):
    """Each in a folder of its own, though their overrides differ only past a name's end."""
    sweep = ["train.steps=1,2", f"run_dir={tmp_path}/${{run_name}}", f"hydra.sweep.dir={tmp_path}"]
    output = run_to_end(["-m", *tiny, *sweep])
    folders = sorted(path for path in tmp_path.iterdir() if (path / "metrics.jsonl").exists())
    assert len(folders) == 2, output
    steps = {yaml.safe_load((f / "config.yaml").read_text())["train"]["steps"] for f in folders}
    assert steps == {1, 2}


@pytest.mark.slow
def test_a_job_of_a_sweep_is_as_if_it_were_alone(tiny, tmp_path):
    """The one before left DeepSpeed's process-wide changes, and a larger peak."""
    pytest.importorskip("deepspeed")
    common = [*tiny, "train.steps=3"]
    sweep = ["engine=deepspeed,fsdp", "model.d_ff=20000,40", f"hydra.sweep.dir={tmp_path}"]
    run_to_end(["-m", *common, *sweep, f"run_dir={tmp_path}/${{run_name}}"])
    alone = tmp_path / "alone"
    run_to_end([*common, "engine=fsdp", f"run_dir={alone}"])
    runs = {}
    for path in tmp_path.glob("*/config.yaml"):
        values = yaml.safe_load(path.read_text())
        runs[path.parent != alone, values["engine"]["name"], values["model"]["d_ff"]] = path.parent
    assert len(runs) == 5
    assert losses(runs[True, "fsdp", 40]) == losses(alone)

    def peak(d_ff: int) -> int:
        lines = (runs[True, "fsdp", d_ff] / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[2])["peak_memory_bytes"]

    assert peak(40) < peak(20_000) - 3 * 3 * 8 * 20_000 * 4  # weights and moments, if no more


def test_a_runs_folder_and_its_metrics(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*tiny, "train.steps=6", "evaluation.every=3", "checkpoint.every=2"]
    assert exit_code_of([*arguments, "checkpoint.keep=1", f"run_dir={run}"]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "--- sample ---" in out and str(run) in out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 7))
    assert [line["step"] for line in validation] == [3, 6]
    contract = {
        "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu",
        "step_seconds", "data_seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert all(contract <= set(line) for line in training)
    assert training[-1]["tokens"] == 6 * 8 * 32
    assert all({"val_loss", "val_perplexity", "val_tokens"} <= set(line) for line in validation)
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 6
    assert (run / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"step-00000006"}  # the newest, and also the best


@pytest.mark.parametrize("module", ["cola_train", "cola_train.commands.plan"])
def test_version_and_a_flag_that_does_not_exist(module):
    assert run_python("-m", module, "seed=1", "--version").stdout == f"cola_train {__version__}\n"
    wrong = run_python("-m", module, "seed=1", "--resume", expect=2).stderr
    assert wrong == "error: --resume: no such flag; see --help and --hydra-help\n"


def test_tab_completion():
    """As Hydra's help says to install it; behind a config file too."""
    script = hydra_command("-sc", "install=bash")
    assert script.rstrip().endswith("-F hydra_bash_completion cola-train")
    for typed, found in [("model=6", "model=60m"), ("my.yaml train.st", "train.steps="),
                         ("a=[ mo", "")]:  # fmt: skip
        query = ["-m", "cola_train", "-sc", "query=bash"]
        answer = run_forked(*query, COMP_LINE=f"cola-train {typed}")
        assert found in answer.stdout and not answer.stderr
