"""The command line: contracts, and what a user's mistakes say."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import REPOSITORY, make_config, run_to_end

from cola_train.commands.cli import config_dir, run_app
from cola_train.config.fields import field_names
from cola_train.config.schema import Config
from cola_train.data import prepare
from cola_train.train import train


def exit_code_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_app(train, arguments)
    return exit_.value.code


# (overrides after the tiny defaults, what the message must name)
BAD_OPTIONS = [
    (["trian.steps=5"], ["trian.steps", "`train.steps`"]),
    (["lr=1"], ["lr", "`optim.lr`"]),
    (["model=60"], ["60", "`60m`"]),
    (["method=colaa"], ["colaa", "`cola`"]),
    (["experiment=paper_61m"], ["`paper_60m`"]),
    (["train.steps=many"], ["train.steps", "whole number", "many"]),
    (["train.steps=0"], ["train.steps", "at least 1"]),
    (["optim.lr=-1"], ["optim.lr", "more than 0"]),
    (["optim.betas=[0.9,1.0]"], ["optim.betas", "below 1"]),
    (["optim.clip=nan"], ["optim.clip", "finite"]),
    (["method.activation=relu"], ["method.activation", "low_rank, both, full_rank"]),
    (["method.rank=64"], ["method.rank", "from 1 to", "32"]),
    (["method.rank_ratio=0.001"], ["method.rank_ratio", "rank of 0"]),
    (["model.n_heads=5"], ["model.n_heads", "divide", "32"]),
    (["kernels=cuda"], ["kernels", "auto, torch, triton"]),
    (["kernels=triton"], ["kernels", "triton cannot run here", "kernels=torch"]),
    (["method=full", "recompute=cola_m"], ["recompute", "method=cola", "recompute=full"]),
    (["model.attention=flash"], ["model.attention", "flash"]),
    (["train.batch_tokens=100"], ["train.batch_size", "exactly one"]),
    (["train.batch_size=null", "train.batch_tokens=100"], ["train.batch_tokens", "multiple"]),
    (["train.micro_batch_size=3"], ["train.micro_batch_size", "divide", "8"]),
    (["optim.warmup_steps=1000000"], ["optim.warmup_steps", "train.steps"]),
    (["resume=nowhere/at/all"], ["resume", "nowhere/at/all"]),
    (["data.files=[/nowhere/*.txt]"], ["data.files", "/nowhere/*.txt"]),
    (["data.tokenizer=/nowhere/tokenizer.json"], ["data.tokenizer", "/nowhere/tokenizer.json"]),
    (["data.vocab_size=400"], ["vocab_size", "400", "300"]),
    (["data=tokens"], ["data.path", "missing"]),
    (["data=tokens", "data.path=/nowhere"], ["data.path", "/nowhere"]),
    (["data=c4", "data.path=/nowhere", "data.tokenizer=train"], ["data.path", "/nowhere"]),
    (["train.steps"], ["train.steps", "option=value"]),
    (["engine.sharding=some"], ["engine.sharding", "full, hybrid, replicate"]),
    (["run_name=${nothing}"], ["nothing"]),
    (["+train.extra=1"], ["train.extra"]),
    (["tracking.progress=maybe"], ["tracking.progress", "true or false"]),
    (["data.files=text.txt"], ["data.files", "list"]),
]


@pytest.mark.parametrize(("overrides", "named"), BAD_OPTIONS, ids=lambda v: " ".join(v)[:40])
def test_bad_options_exit_2_before_anything_starts(
    tiny, tmp_path, capsys, monkeypatch, overrides, named
):
    monkeypatch.setattr("cola_train.distributed.start", lambda *_: pytest.fail("started"))
    assert exit_code_of([*tiny, f"run_dir={tmp_path / 'run'}", *overrides]) == 2
    out, err = capsys.readouterr()
    assert all(word in err for word in named), err
    assert "Traceback" not in err and not out
    assert not (tmp_path / "run").exists()


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
    assert "does not fit" in capsys.readouterr().err
    assert exit_code_of([*common, "seed=1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_damaged_shard_exits_2(tiny, tmp_path, capsys):
    config = make_config(*tiny)
    folder = shutil.copytree(prepare(config.data, config.model.vocab_size), tmp_path / "shards")
    arguments = [*tiny, "data=tokens", f"data.path={folder}", "train.steps=1", "data.files=[]"]
    assert exit_code_of([*arguments, f"run_dir={tmp_path / 'good'}"]) == 0
    shard = folder / "train-00000.tokens.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert exit_code_of([*arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    assert shard.name in capsys.readouterr().err


def test_all_problems_at_once(tiny, tmp_path, capsys):
    bad = ["train.stepz=1", "optim.lr=0", "model.n_heads=5", "method=colla"]
    assert exit_code_of([*tiny, f"run_dir={tmp_path / 'run'}", *bad]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 4
    assert all(name in err for name in ("train.steps", "optim.lr", "model.n_heads", "cola"))


def test_every_config_group_and_experiment_loads(corpus):
    """Each YAML file, with no unknown or missing key; the paper's recipe for every size."""
    recipe = {  # FACTS of the official code: lr, steps, warm-up
        "60m": (6e-3, 10_000, 2000),
        "130m": (3e-3, 20_000, 2000),
        "350m": (3e-3, 60_000, 6000),
        "1b": (2e-3, 100_000, 10_000),
        "7b": (1e-3, 150_000, 15_000),
    }
    for file in sorted(config_dir().glob("*/*.yaml")):
        group, name = file.parent.name, file.stem
        extra = [f"data.files=[{corpus}/*.txt]"] if (group, name) == ("data", "text") else []
        if group == "experiment":
            continue
        if (group, name) != ("data", "tokens"):  # whose folder is looked into
            make_config(f"{group}={name}", *extra)
    for size, (lr, steps, warmup) in recipe.items():
        for method in ("cola", "full"):
            config = make_config(f"experiment=paper_{size}", f"method={method}")
            assert (config.model.name, config.method.name) == (size, method)
            assert (config.optim.lr, config.train.steps, config.optim.warmup_steps) == (
                lr,
                steps,
                warmup,
            )
            assert config.optim.betas == [0.9, 0.999] and config.optim.weight_decay == 0.01
            assert config.optim.clip == 0.5 and config.batch_size == 512
            assert config.data.packing == "per_document" and config.data.tokenizer == "t5-base"
    assert make_config("model=130m").rank == 256
    assert make_config("model=1b", "method.rank_ratio=0.125").rank == 256
    assert make_config("method.rank=7", "method.rank_ratio=0.5").rank == 7
    assert make_config("model=350m").method.activation == "low_rank"
    assert make_config("train.batch_size=null", "train.batch_tokens=1024").batch_size == 4


def test_batch_must_divide_among_processes(monkeypatch, tiny, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert exit_code_of([*tiny]) == 2
    assert "multiple of 3" in capsys.readouterr().err


def hydra_command(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "cola_train", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_help_and_cfg():
    help_text = hydra_command("--help")
    assert "experiment" in help_text and "paper_60m" in help_text and "60m" in help_text
    shown = yaml.safe_load(hydra_command("--cfg", "job", "model=60m"))
    assert shown["model"]["d_model"] == 512
    assert set(shown) == {name for name in field_names(Config) if "." not in name}


def test_multirun(tiny, tmp_path):
    """Each in a folder of its own, though their overrides differ only past a name's end."""
    sweep = ["train.steps=1,2", f"run_dir={tmp_path}/${{run_name}}", f"hydra.sweep.dir={tmp_path}"]
    output = run_to_end(["-m", *tiny, *sweep])
    folders = sorted(path for path in tmp_path.iterdir() if (path / "metrics.jsonl").exists())
    assert len(folders) == 2, output
    steps = {yaml.safe_load((f / "config.yaml").read_text())["train"]["steps"] for f in folders}
    assert steps == {1, 2}


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
    assert "step-00000006" in kept and len(kept) <= 2
