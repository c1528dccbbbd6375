"""A model that was trained, in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import exit_code_of, make_config, run_to_end
from torch.nn import functional as F

import cola_train
from cola_train.data.loader import evaluation_batches
from cola_train.data.prepared import open_data
from cola_train.errors import UserError
from cola_train.inference.load import load


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_a_loaded_model_has_the_runs_validation_loss(tiny, tmp_path, engine):
    """By its logits, beside the last line that the run has printed."""
    pytest.importorskip("deepspeed") if engine == "deepspeed" else None
    run_dir = tmp_path / "run"
    overrides = [*tiny, f"engine={engine}", "train.steps=6", f"run_dir={run_dir}"]
    overrides += ["data.document_mask=false", "method.activation=low_rank"]
    said = float(run_to_end(overrides).rpartition("validation loss ")[2].split(",")[0])
    batches = list(
        evaluation_batches(
            open_data(make_config(*overrides).data, progress=False).validation,
            sequence_length=32, micro_batch_size=8, rank=0, world_size=1, packing="packed",
            with_documents=False, max_tokens=1024,
        )
    )  # fmt: skip
    for path in (run_dir, str(run_dir / "checkpoints" / "step-00000006")):
        model = cola_train.load_model(path)
        losses = [
            F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
            for batch in batches
        ]
        assert sum(losses).item() / len(losses) == pytest.approx(said, abs=6e-5)  # as printed


def test_what_cannot_be_loaded_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        cola_train.load_model(tmp_path)
    assert exit_code_of([*tiny, "train.steps=1", f"run_dir={tmp_path / 'run'}"]) == 0
    (file,) = tmp_path.glob("run/checkpoints/step-00000001/rank-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=file.name):
        cola_train.load_model(tmp_path / "run")


def test_folded_weights_compute_what_the_trained_ones_do(tiny, tmp_path):
    run_dir = tmp_path / "run"
    options = ["method=sltrain", "model.d_ff=37", "train.steps=3", "optim.lr=1e-2"]
    assert exit_code_of([*tiny, *options, f"run_dir={run_dir}"]) == 0
    trained, model = load(run_dir), cola_train.load_model(run_dir)
    assert trained.config.method.name == "full" and len([*model.parameters()]) > 30
    tokens = torch.arange(1, 33)[None]
    torch.testing.assert_close(trained.model(tokens), model(tokens))
    half = load(run_dir / "checkpoints" / "step-00000003", dtype=torch.bfloat16).model
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.rotary.dtype == torch.float32  # angles of far positions need it
    torch.testing.assert_close(half(tokens).float(), model(tokens), rtol=0.05, atol=0.05)


def test_another_tokenizer_or_none_is_named_with_the_fix(tiny, tmp_path):
    run_dir = tmp_path / "run"
    assert exit_code_of([*tiny, "train.steps=1", f"run_dir={run_dir}"]) == 0
    path, (state,) = run_dir / "tokenizer.json", run_dir.glob("checkpoints/*/state.json")
    (kept,) = {Path(json.loads(state.read_text())["loader"]["folder"]) / "tokenizer.json"}
    path.write_text(path.read_text().replace('"!"', '"!!"'))
    with pytest.raises(UserError, match=f"{path}: another tokenizer .* bring back the one of the"):
        load(run_dir)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: cannot be read .* copy {kept} there"):
        load(run_dir)
    path.write_bytes(kept.read_bytes())
    assert load(run_dir).tokenizer.decode(load(run_dir).tokenizer.encode("a cat")) == "a cat"


def test_the_package_says_its_version_without_torch():
    code = "import cola_train, sys; print(cola_train.__version__, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [cola_train.__version__, "False"]
