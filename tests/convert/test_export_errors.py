"""What an export needs, what it refuses, and what is left when it fails."""

import dataclasses
import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import checkpointer, real_model, values_config
from safetensors.torch import load_file

from benchmarks.peak import PeakMemory
from cola_train.commands import export as command
from cola_train.convert import export as exporting
from cola_train.convert import folding
from cola_train.data.tokenizer import Tokenizer

TEXT = ["the cat sees a dog", "the dog sees no cat"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run's folder as a training of no step leaves it, with AdamW's state."""

    def make(method: dict[str, Any], scale: float = 1.0, **model: int) -> Path:
        config = values_config(method=method, model={"vocab_size": 300, **model})
        weights = {f"model.{n}": t.detach() * scale for n, t in weights_of(config).items()}
        state = {f"optim.{n}.{m}": t.clone() for n, t in weights.items() for m in ("exp_avg", "v")}
        folder = tmp_path / "run"
        text = Tokenizer.train(TEXT, 300).to_json()
        saved = {
            "config": dataclasses.asdict(config),
            "progress": {"tokens": 0},
            "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
        }
        target = checkpointer(folder / "checkpoints")
        target.save(7, {**weights, **state}, saved)
        target.close()
        (folder / "tokenizer.json").write_text(text)
        return folder

    return make


def weights_of(config: Any) -> dict[str, torch.Tensor]:
    model = real_model(config)
    folding.remove_padding(model)
    return model.state_dict()


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["cola-export", *words])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    return exit_.value.code


def test_a_block_is_in_memory_and_not_the_model(run, tmp_path):
    """Of 16, folded, beside an optimizer's state of twice the model."""
    folder = run({"name": "lora", "rank": 4}, n_layers=16, d_model=64, d_ff=256)
    with PeakMemory() as memory, memory.phase("export"):
        exporting.export(folder, tmp_path / "out", dtype="fp32", shard_bytes=10**6)
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    (mapped,) = folder.glob("checkpoints/*/*.safetensors")  # of which pages come and go
    assert written > 3e6 and memory.peak["export"] - mapped.stat().st_size < written / 8


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path, monkeypatch, capsys):
    folder, out = run({"name": "cola"}), tmp_path / "to" / "out"
    words = (f"run_dir={folder}", f"out={out}")
    failures = iter([OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    monkeypatch.setattr(exporting, "cast_one", lambda *_: (_ for _ in ()).throw(next(failures)))
    assert run_command(monkeypatch, *words) == 2
    assert f"out: {out} cannot be written (No space left on device)" in capsys.readouterr().err
    assert run_command(monkeypatch, *words) == 130
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert run_command(monkeypatch, *words) == 2
    assert "0.0 GB are needed and 0.0 free" in capsys.readouterr().err
    monkeypatch.undo()
    assert run_command(monkeypatch, *words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    before = (out / "model.safetensors").stat()
    assert run_command(monkeypatch, *words) == 2
    assert f"out: {out} is there already; choose another" in capsys.readouterr().err
    assert (out / "model.safetensors").stat() == before


def test_what_cannot_be_exported_is_named(run, tmp_path, monkeypatch, capsys):
    out = f"out={tmp_path / 'out'}"

    def said(*words: str) -> str:
        assert run_command(monkeypatch, out, *words) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no checkpoint in this folder" in said(f"run_dir={tmp_path}")
    assert "run_dir: missing" in said()
    (exported := tmp_path / "exported").mkdir()
    (exported / "config.json").write_text("{}")
    folder = run({"name": "cola"}, scale=1e7)
    of_run = f"run_dir={folder}"
    assert "fp16 ends at 65504; use dtype=bf16" in said(of_run, "dtype=fp16")
    diverged = run({"name": "cola"}, scale=1e39)
    assert "embedding.weight holds numbers that are not finite" in said(f"run_dir={diverged}")
    large = tmp_path / "large.json"
    large.write_text(Tokenizer.train([chr(500 + i) * 9 for i in range(400)], 400).to_json())
    too_large = f"it has {Tokenizer.load(str(large)).vocab_size} tokens, and the model 300; give"
    assert too_large in said(of_run, f"tokenizer={large}")
    own = folder / "tokenizer.json"
    own.write_text(Tokenizer.train(["another text"], 290).to_json())
    assert f"{own}: another tokenizer than the model's: its checksum differs; give" in said(of_run)
    own.unlink()
    assert f"{own}: cannot be read (No such file or directory); give" in said(of_run)
    assert "make it one: cola-import source=" in said(f"run_dir={exported}")
    monkeypatch.setattr(exporting, "exported_names", lambda names: {}[next(iter(names))])
    assert "its weight embedding.weight has no place" in said(of_run)


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_in_other_dtypes_are_the_rounded_ones(run, tmp_path, dtype, kind):
    folder = run({"name": "full"})
    for name in ("fp32", dtype):
        exporting.export(folder, tmp_path / name, dtype=name, shard_bytes=10**9)
    whole, narrow = (load_file(tmp_path / n / "model.safetensors") for n in ("fp32", dtype))
    assert all(torch.equal(narrow[name], weight.to(kind)) for name, weight in whole.items())
