"""Splits with nothing to predict are refused, for a mean over no tokens is no loss."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from corpora import write_jsonl
from helpers import finish, launch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from cola_train.data.loader import IGNORE_INDEX, Batch, check_predictions, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.data.prepared import PreparedData, open_data
from cola_train.errors import UserError
from cola_train.evaluation.loss import evaluate

OpenTexts = Callable[[list[str], list[str]], PreparedData]
BLANKS = [" ", "\t\t", "\n \n"]  # of which a tokenizer of words makes no token
WORDS = ["a cat", "a", "cat a cat"]


def write_tokenizer(path: Path) -> Path:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "cat": 2, "[UNK]": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.save(str(path))
    return path


@pytest.fixture
def open_texts(tmp_path: Path, data_config: Callable[..., DataOptions]) -> OpenTexts:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")

    def open_(train: list[str], validation: list[str]) -> PreparedData:
        files = [str(write_jsonl(tmp_path / "t.jsonl", train))]
        others = [str(write_jsonl(tmp_path / "v.jsonl", validation))]
        return open_data(
            data_config(files=files, validation_files=others, tokenizer=str(tokenizer))
        )

    return open_


def said_of(data: PreparedData, packing: str, sequence_length: int = 8) -> list[str]:
    try:
        check_predictions(
            data.train, data.validation, packing=packing, sequence_length=sequence_length
        )
    except UserError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("blank", [["train"], ["validation"], ["train", "validation"]])
def test_documents_of_one_token_have_nothing_to_predict(
    open_texts: OpenTexts, blank: list[str]
) -> None:
    texts = {split: (BLANKS if split in blank else WORDS) * 5 for split in ("train", "validation")}
    data = open_texts(texts["train"], texts["validation"])
    said = said_of(data, "per_document")
    assert len(said) == len(blank)
    for split, problem in zip(blank, said, strict=True):
        assert f"{data.train.folder}: the {split} split has no token to predict" in problem
        assert "set data.packing=packed" in problem
    assert said_of(data, "packed") == []


def test_sequences_too_short_or_too_long_to_predict(open_texts: OpenTexts) -> None:
    data = open_texts(WORDS * 5, WORDS)
    assert len(said_of(data, "per_document", sequence_length=1)) == 2
    said = said_of(data, "packed", sequence_length=data.validation.n_tokens)
    assert len(said) == 1 and "validation split has 9 tokens, fewer than one" in said[0]
    assert said_of(data, "packed", sequence_length=data.validation.n_tokens - 1) == []


def test_an_evaluation_of_few_tokens_predicts_some(open_texts: OpenTexts) -> None:
    """Documents without predictions come first, and the next has more than were asked for."""
    data = open_texts(WORDS, [*BLANKS, "cat " * 6, "a cat"])
    batches = evaluation_batches(
        data.validation, sequence_length=8, micro_batch_size=1, rank=0, world_size=1,
        packing="per_document", with_documents=False, max_tokens=2,
    )  # fmt: skip
    predicted = [int((batch.targets != IGNORE_INDEX).sum()) for batch in batches]
    assert predicted == [0, 0, 0, 6]


def test_a_mean_over_no_tokens_is_no_loss() -> None:
    """An engine's sum over a batch of padding is 0."""
    batch = Batch(torch.zeros(1, 4), torch.full((1, 4), IGNORE_INDEX), None)
    with pytest.raises(UserError, match="no token to predict"):
        evaluate(lambda _: (torch.tensor(0.0), 0), [batch, batch])


def test_the_run_ends_before_its_first_step(tmp_path: Path, tiny: list[str]) -> None:
    for name, texts in (("t", WORDS * 20), ("v", BLANKS * 20)):
        write_jsonl(tmp_path / f"{name}.jsonl", texts)
    data = [
        f"data.files=[{tmp_path}/t.jsonl]", f"data.validation_files=[{tmp_path}/v.jsonl]",
        f"data.tokenizer={write_tokenizer(tmp_path / 'tokenizer.json')}",
        "data.packing=per_document",
    ]  # fmt: skip
    run = launch([*tiny, *data, f"run_dir={tmp_path}/run", "train.steps=2"])
    said, _ = finish(run, expect=2)
    assert "the validation split has no token to predict" in said and "Traceback" not in said
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
