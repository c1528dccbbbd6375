"""Batches against references computed here from the texts and the `tokenizers` library alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import some_texts, write_jsonl
from tokenizers import Tokenizer

from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import IGNORE_INDEX, Batch, BatchLoader, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.data.prepared import open_data
from cola_train.errors import UserError

T = 16
SHARDS = 3


@pytest.fixture
def corpus(
    tmp_path: Path,
    tokenizer_json: Path,
    data_config: Callable[..., DataOptions],
    small_shards: None,
) -> tuple[TokenDataset, list[list[int]], int]:
    """A training split of three shards, its documents' ids, and the id that ends each."""
    texts = [some_texts(40, seed) for seed in range(SHARDS)]
    files = [str(write_jsonl(tmp_path / f"{i}.jsonl", part)) for i, part in enumerate(texts)]
    validation = str(write_jsonl(tmp_path / "v.jsonl", ["some text"]))
    data = open_data(
        data_config(files=files, validation_files=[validation], tokenizer=str(tokenizer_json))
    )
    backend = Tokenizer.from_file(str(tokenizer_json))
    eos = backend.token_to_id("<|endoftext|>")
    documents = [[*backend.encode(text).ids, eos] for part in texts for text in part]
    return data.train, documents, eos


def make_loader(dataset: TokenDataset, **changes: Any) -> BatchLoader:
    options: dict[str, Any] = {
        "sequence_length": T,
        "batch_size": 8,
        "micro_batch_size": 2,
        "rank": 0,
        "world_size": 1,
        "seed": 5,
        "packing": "packed",
        "with_documents": True,
    }
    return BatchLoader(dataset, **{**options, **changes})


def rows(batches: list[Batch]) -> list[tuple[tuple[int, ...], ...]]:
    return [
        (tuple(inputs), tuple(targets))
        for batch in batches
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    ]


def global_steps(dataset: TokenDataset, world_size: int, steps: int, **changes: Any) -> list:
    """Each step's rows, of all processes in order of rank."""
    loaders = [
        make_loader(dataset, rank=rank, world_size=world_size, **changes)
        for rank in range(world_size)
    ]
    taken = [[row for loader in loaders for row in rows(loader.next())] for _ in range(steps)]
    for loader in loaders:
        loader.close()
    return taken


def packed_reference(documents: list[list[int]]) -> list:
    stream = [token for document in documents for token in document]
    cuts = range(0, len(stream) - T, T)
    return [(tuple(stream[i : i + T]), tuple(stream[i + 1 : i + T + 1])) for i in cuts]


def per_document_reference(documents: list[list[int]], eos: int) -> list:
    expected = []
    for document in documents:
        inputs = document if len(document) <= T else [*document[: T - 1], eos]
        targets = [*inputs[1:], IGNORE_INDEX]
        padding = T - len(inputs)
        expected.append((tuple(inputs + [eos] * padding), tuple(targets + [-100] * padding)))
    return expected


def reference(packing: str, documents: list[list[int]], eos: int) -> list:
    return (
        packed_reference(documents)
        if packing == "packed"
        else per_document_reference(documents, eos)
    )


@pytest.mark.parametrize("packing", ["packed", "per_document"])
def test_each_epoch_takes_every_sample_once_in_another_order(corpus: Any, packing: str) -> None:
    dataset, documents, eos = corpus
    expected = reference(packing, documents, eos)
    n = len(expected)
    steps = global_steps(dataset, 1, steps=2 * n // 8 + 1, packing=packing)
    taken = [row for step in steps for row in step]
    assert len(taken) > 2 * n  # steps span the ends of epochs
    for epoch in (taken[:n], taken[n : 2 * n]):
        assert sorted(epoch) == sorted(expected)
        assert epoch != expected
    assert taken[:n] != taken[n : 2 * n]


def test_documents_number_the_texts_of_a_row(corpus: Any) -> None:
    dataset, _, eos = corpus
    loader = make_loader(dataset)
    for batch in loader.next():
        assert batch.documents is not None and batch.documents.dtype == torch.int32
        for inputs, numbers in zip(batch.inputs.tolist(), batch.documents.tolist(), strict=True):
            expected, number = [], 0
            for token in inputs:
                expected.append(number)
                number += token == eos
            assert numbers == expected
    loader.close()


@pytest.mark.parametrize("packing", ["packed", "per_document"])
def test_a_step_is_the_same_on_any_number_of_processes(corpus: Any, packing: str) -> None:
    dataset, _, _ = corpus
    alone = global_steps(dataset, 1, steps=12, packing=packing)
    for world_size, micro_batch_size in [(1, 8), (2, 1), (2, 4), (4, 2)]:
        several = global_steps(
            dataset, world_size, 12, packing=packing, micro_batch_size=micro_batch_size
        )
        assert several == alone


@pytest.mark.parametrize("done", [0, 1, 7, 40])
def test_resumes_exactly_on_another_number_of_processes(corpus: Any, done: int) -> None:
    dataset, _, _ = corpus
    uninterrupted = global_steps(dataset, 1, steps=done + 3)
    first = make_loader(dataset)
    for _ in range(done):
        first.next()  # it has read one step ahead, which must not count
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    assert state["samples"] == done * 8

    resumed = [make_loader(dataset, rank=rank, world_size=2) for rank in range(2)]
    for loader in resumed:
        loader.next()
        loader.load_state_dict(state)
    taken = [[row for loader in resumed for row in rows(loader.next())] for _ in range(3)]
    for loader in resumed:
        loader.close()
    assert taken == uninterrupted[done:]


def test_refuses_the_state_of_another_run_and_names_each_difference(corpus: Any) -> None:
    dataset, _, _ = corpus
    state = make_loader(dataset).state_dict() | {"data": "0123456789abcdef"}
    other = make_loader(dataset, seed=6, packing="per_document", sequence_length=8)
    with pytest.raises(UserError) as caught:
        other.load_state_dict(state)
    fields = [problem.split(":")[0] for problem in caught.value.problems]
    assert fields == ["data", "seed", "data.packing", "train.sequence_length"]
    assert "set seed as before" in str(caught.value)
    assert "their fingerprint was '0123456789abcdef'" in str(caught.value)


BEGUN = {"source": "text", "files": ["/a"], "tokenizer": "train", "max_files": None, "workers": 1}


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (BEGUN | {"files": ["/b"], "workers": 2}, "data.files=['/a'], and this has data.files"),
        (
            {"source": "stdlib", "tokenizer": "train"},
            "it began with data.source=text data.files=['/a'], and this has data.source=stdlib: ",
        ),
        (BEGUN | {"max_files": 3}, "with data.max_files=null, and this has data.max_files=3: set"),
        (BEGUN | {"workers": 2}, "the options are the same, so the files (or the tokenizer's)"),
    ],
)
def test_other_data_are_told_in_words(corpus: Any, here: dict[str, Any], said: str) -> None:
    dataset, _, _ = corpus
    state = make_loader(dataset).state_dict() | {"data": "0123456789abcdef", "options": BEGUN}
    with pytest.raises(UserError) as caught:
        make_loader(dataset, options=here).load_state_dict(state)
    (problem,) = caught.value.problems
    assert said in problem and "0123456789abcdef" not in problem
    assert f"data=tokens data.path={dataset.folder}, or start a new run" in problem
    with pytest.raises(UserError, match=r"have changed since.*: bring the files back, or start a"):
        make_loader(dataset, options=BEGUN).load_state_dict(state | {"folder": "/gone"})


def test_refuses_a_batch_that_does_not_divide(corpus: Any) -> None:
    with pytest.raises(ValueError, match="batch_size=8 is not a multiple"):
        make_loader(corpus[0], world_size=2, micro_batch_size=3)


@pytest.mark.parametrize("packing", ["packed", "per_document"])
@pytest.mark.parametrize("max_tokens", [None, 5 * T + 3, 1])
def test_evaluation_takes_each_sequence_once(
    corpus: Any, packing: str, max_tokens: int | None
) -> None:
    dataset, documents, eos = corpus
    expected = reference(packing, documents, eos)
    if max_tokens is not None:
        predictions = [sum(t != IGNORE_INDEX for t in targets) for _, targets in expected]
        count = sum(total <= max_tokens for total in np.cumsum(predictions))
        expected = expected[: max(1, count)]
    for world_size, micro_batch_size in [(1, 4), (2, 2), (3, 5)]:
        ranks = [
            list(
                evaluation_batches(
                    dataset,
                    sequence_length=T,
                    micro_batch_size=micro_batch_size,
                    rank=rank,
                    world_size=world_size,
                    packing=packing,
                    with_documents=True,
                    max_tokens=max_tokens,
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1  # collectives must match
        taken = [row for step in zip(*ranks, strict=True) for row in rows(list(step))]
        most = min(micro_batch_size, -(-len(expected) // world_size))  # no rows for nothing
        assert all(len(b.inputs) == most for batches in ranks for b in batches)
        assert taken[: len(expected)] == expected
        assert all(set(targets) == {IGNORE_INDEX} for _, targets in taken[len(expected) :])


def test_windows_and_documents_cross_shards(corpus: Any) -> None:
    dataset, documents, _ = corpus
    stream = [token for document in documents for token in document]
    assert len(list(dataset.folder.glob("train-*.tokens.npy"))) == SHARDS
    assert dataset.n_tokens == len(stream) and dataset.n_documents == len(documents)
    assert dataset.window(0, len(stream)).tolist() == stream
    assert (
        dataset.window(len(stream) // 3 - 50, 100).tolist() == stream[len(stream) // 3 - 50 :][:100]
    )
    assert [dataset.document(i).tolist() for i in range(len(documents))] == documents
    assert dataset.document_lengths().tolist() == [len(document) for document in documents]
