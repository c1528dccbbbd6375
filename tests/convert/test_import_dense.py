"""`cola-import method=...`: a dense run becomes one of bottlenecks, where training may begin."""

import pytest
from helpers import exit_code_of, losses, make_config
from test_import import SHAPE, import_code

from cola_train import load_model
from cola_train.convert.factor import sample
from cola_train.data.prepared import open_data


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("dense") / "run"
    options = [*tiny, *SHAPE, "method=full", "train.steps=6", "optim.lr=0.03"]
    assert exit_code_of([*options, f"run_dir={run}"]) == 0
    return run


def test_a_dense_run_becomes_bottlenecks(dense, tiny, tmp_path) -> None:
    """Of full rank, and without SiLU on them, they compute the same; a run begins there."""
    data = [word for word in tiny if word.startswith("data")]
    width = next(word.split("=")[1] for word in SHAPE if word.startswith("model.d_model"))
    method = ["method=cola", f"method.rank={width}", "method.activation=full_rank"]
    out = tmp_path / "low"
    assert import_code(f"source={dense}", f"out={out}", "tokens=600", *data, *method) == 0
    config = make_config(*tiny, *SHAPE)
    tokens = sample(open_data(config.data, progress=False).train, config, 64, False)[0].inputs
    low, logits = load_model(out), load_model(dense)(tokens)
    assert "layers.0.mlp.gate_A" in dict(low.named_parameters())
    assert (low(tokens) - logits).norm() < 1e-3 * logits.norm()
    own = [word for word in tiny if not word.startswith(("model.", "data"))]
    assert exit_code_of([f"{out}/config.yaml", *own, "train.steps=1"]) == 0
    assert list(losses(out)) == [1]


def test_what_cannot_become_bottlenecks_is_named(dense, tiny, tmp_path, capsys) -> None:
    data = [word for word in tiny if word.startswith("data")]

    def refusal(*words: str) -> str:
        assert import_code(f"source={dense}", f"out={tmp_path / 'out'}", *data, *words) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "a dense model becomes one of bottlenecks only" in refusal("method=lora")
    assert "tokens: only for a dense model" in refusal("tokens=600")
    low = tmp_path / "low"
    assert import_code(f"source={dense}", f"out={low}", *data, "tokens=600", "method=cola") == 0
    assert "holds a model of method=cola" in refusal("method=cola", f"source={low}")
