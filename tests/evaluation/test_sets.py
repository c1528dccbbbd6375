"""Named validation sets: a loss for each, the run itself unchanged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import exit_code_of, losses, refusal
from test_eval_command import TEXTS, cola_eval

from cola_train.data.options import DataOptions, TokensOptions
from cola_train.evaluation.sets import Reader


def validations(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val_loss" in line]


@pytest.fixture
def two_sets(tmp_path: Path, corpus: Path) -> str:
    """One of other text, one of the run's own."""
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    other = f"{{source: text, validation_files: [{tmp_path}/texts]}}"
    return f"sets={{other: {other}, own: {{source: text, files: [{corpus}/*.txt]}}}}"


def test_each_set_has_a_loss_and_the_run_is_as_without(tiny, tmp_path, two_sets, capsys):
    run = [*tiny, "train.steps=4", "evaluation.every=2"]
    assert exit_code_of([*run, f"run_dir={tmp_path / 'plain'}"]) == 0
    assert exit_code_of([*run, f"run_dir={tmp_path / 'run'}", f"evaluation.{two_sets}"]) == 0
    said = capsys.readouterr().err
    plain, found = validations(tmp_path / "plain"), validations(tmp_path / "run")
    assert [line["step"] for line in found] == [2, 4]
    assert losses(tmp_path / "plain") == losses(tmp_path / "run")
    for line, without in zip(found, plain, strict=True):
        assert {**without, **line} == line
        assert line["val_loss/own"] == line["val_loss"] != line["val_loss/other"]
        assert f"; other {line['val_loss/other']:.4f}; own " in said
    assert cola_eval(f"run_dir={tmp_path / 'run'}", two_sets, "output=json", "batch_size=8") == 0
    sets = json.loads(capsys.readouterr().out)["sets"]
    by_run = {key: loss for key, loss in found[-1].items() if "/" in key}
    by_command = {f"val_loss/{name}": of["loss"] for name, of in sets.items()}
    assert by_command == pytest.approx(by_run, rel=1e-6)  # loaded anew: rounding
    # started again from its own file, it only reports
    assert exit_code_of([str(tmp_path / "run" / "config.yaml"), "tracking.wandb=disabled"]) == 0
    assert validations(tmp_path / "run") == found


def test_wrong_sets_are_refused_at_once(tiny, tmp_path, capsys):
    def refused(sets: dict[str, object]) -> str:
        return "\n".join(refusal(evaluation={"sets": sets}))

    assert "evaluation.sets.a: a group of options is expected, got 'wiki'" in refused({"a": "wiki"})
    assert "evaluation.sets.a.source: must be one of stdlib, text" in refused({"a": {}})
    assert "evaluation.sets: 'a/b' is no name" in refused({"a/b": {"source": "stdlib"}})
    own = {"source": "text", "tokenizer": "t5-base", "vocab_size": 3, "fiels": []}
    assert "option `evaluation.sets.a.fiels` does not exist" in refused({"a": own})
    del own["fiels"]
    said = refused({"a": own})
    assert "evaluation.sets.a.tokenizer: the model's own is taken" in said
    assert "evaluation.sets.a.vocab_size: the model's own is taken" in said
    sets = "evaluation.sets={a: {source: text, validation_files: [nothing]}, b: {source: text}}"
    assert exit_code_of([*tiny, sets, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "evaluation.sets.a.validation_files: no file matches 'nothing'" in said
    assert "evaluation.sets.b.validation_files: empty: name files" in said
    assert not (tmp_path / "run").exists()


def test_a_set_is_packed_as_the_run_unless_it_says_otherwise():
    run = DataOptions("text", packing="per_document", verify=False)
    reader = Reader(run, tokenizer=None, file=None, vocab_size=300)
    data = TokensOptions("tokens", path="x", document_mask=None)
    assert reader.read(data) == replace(data, packing="per_document", verify=False)
    assert reader.read(data, given={"packing"}) == replace(data, verify=False)
