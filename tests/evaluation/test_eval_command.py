"""`cola-eval`: its loss is the run's own, and what any text's logits and bytes say by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import exit_code_of
from torch.nn import functional as F

import cola_train
from cola_train.commands.cli import run_composed
from cola_train.commands.eval import EvalConfig, run
from cola_train.commands.on_data import SHARED
from cola_train.convert.export import export
from cola_train.data.options import TextOptions
from cola_train.data.preparation import prepare
from cola_train.data.tokenizer import Tokenizer
from cola_train.evaluation.trained import load_trained

TEXTS = ["The cat sees the dog, and the dog ran under a tree. " * 4, "Naïve 😀 cats → trees. " * 5]


def cola_eval(*overrides: str) -> int:
    """Its exit code."""
    with pytest.raises(SystemExit) as exit_:
        run_composed(run, [*overrides], command="cola-eval", own=EvalConfig, shared=SHARED)
    return exit_.value.code


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    run_dir, cache = folder / "run", f"data.cache_dir={folder / 'cache'}"
    assert exit_code_of([*tiny, "train.steps=6", f"run_dir={run_dir}", cache]) == 0
    return run_dir


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """The option that names them."""
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    return f"data.validation_files=[{tmp_path}/texts]"


def answer(capsys: Any) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)["sets"]["validation"]


def test_the_runs_own_data_give_its_own_loss(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    weights, as_trained = (
        of.state_dict()
        for of in (load_trained(trained, torch.device("cpu")).model, cola_train.load_model(trained))
    )
    assert weights.keys() == as_trained.keys()  # those folded round otherwise in bf16
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if "val_loss" in line]
    capsys.readouterr()
    (tokens,) = (trained.parent / "cache").iterdir()
    for path in (trained, trained / "checkpoints" / "step-00000006", trained):
        assert cola_eval(f"run_dir={path}", "output=json", "batch_size=8") == 0
        found = answer(capsys)
        assert found["loss"] == last["val_loss"] and found["tokens"] == last["val_tokens"]
        assert found["perplexity"] == last["val_perplexity"]
        tokens.rename(trained.parent / "cleaned") if path.name.startswith("step") else None
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_any_text_by_hand(trained, texts, tmp_path, capsys):
    """Loss of the model's logits; bits over the bytes that its tokens have."""
    words = ["data=text", texts, f"data.cache_dir={tmp_path / 'cache'}", "data.workers=1"]
    words += ["data.document_mask=false", "tokens=0", "sequence_length=16"]
    assert cola_eval(f"run_dir={trained}", "output=json", *words) == 0
    found = answer(capsys)
    tokenizer = Tokenizer.load(str(trained / "tokenizer.json"))
    ids = [i for text in TEXTS for i in [*tokenizer.encode(text), tokenizer.eos_id]]
    rows = (len(ids) - 1) // 16
    inputs, targets = (torch.tensor(ids[k : k + rows * 16]).view(rows, 16) for k in (0, 1))
    logits = cola_train.load_model(trained)(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    assert found["tokens"] == rows * 16
    assert found["loss"] == pytest.approx(loss / found["tokens"], rel=1e-6)
    left_out = tokenizer.decode([ids[0], *ids[1 + rows * 16 :]])
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS) - len(left_out.encode())
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) / found["bytes"])
    export(trained, tmp_path / "export", dtype="fp32", shard_bytes=10**9)
    capsys.readouterr()
    assert cola_eval(f"run_dir={tmp_path / 'export'}", "output=json", *words) == 0
    assert answer(capsys) == found
    assert cola_eval(f"run_dir={tmp_path / 'export'}") == 2
    assert "does not say what it was trained on" in capsys.readouterr().err
    assert cola_eval(f"run_dir={trained}", *words, "split=train") == 2
    assert "data.files: empty: name the training files" in capsys.readouterr().err


def test_wrong_input_is_named(trained, texts, tmp_path, capsys):
    def said(*words: str) -> str:
        assert cola_eval(*words) == 2
        return capsys.readouterr().err

    run_dir = f"run_dir={trained}"
    assert "run_dir: missing" in said()
    assert f"{tmp_path}: no checkpoint in this folder" in said(f"run_dir={tmp_path}")
    assert "option `train.steps` does not exist" in said(run_dir, "train.steps=3")
    refused = said(run_dir, "data.tokenizer=t5-base", "split=test")
    assert "data.tokenizer: the model's own" in refused and "split: must be one of" in refused
    assert "sequence_length: 64 is more than the 32" in said(run_dir, "sequence_length=64")
    own = Tokenizer.train(TEXTS, 270).to_json()
    (tmp_path / "other.json").write_text(own)
    options = TextOptions(
        "text", files=[f"{tmp_path}/texts"], tokenizer=str(tmp_path / "other.json"), workers=1,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    tokens = f"data.path={prepare(options, progress=False)}"
    assert "of another tokenizer than the model's" in said(run_dir, "data=tokens", tokens)
    shutil.copytree(trained, tmp_path / "run")
    numbers = [" ".join(str(i * i) for i in range(999))]
    (tmp_path / "run" / "tokenizer.json").write_text(Tokenizer.train(numbers, 310).to_json())
    assert "tokenizer.json: another tokenizer than the model's" in said(
        f"run_dir={tmp_path / 'run'}"
    )
