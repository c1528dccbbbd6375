"""A model that was trained, in one line."""

import subprocess
import sys

import pytest
from helpers import exit_code_of, make_config, run_to_end
from torch.nn import functional as F

import cola_train
from cola_train.data.loader import evaluation_batches
from cola_train.data.prepared import open_data
from cola_train.errors import UserError


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


def test_the_package_says_its_version_without_torch():
    code = "import cola_train, sys; print(cola_train.__version__, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [cola_train.__version__, "False"]
