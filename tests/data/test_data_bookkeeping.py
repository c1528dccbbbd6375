"""Damage to what a prepared folder says of itself: named, or made again; never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import some_texts, write_jsonl

from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.prepared import open_data
from cola_train.data.shards import read_manifest
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError

MakeConfig = Callable[..., DataOptions]


@pytest.fixture
def config(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path, small_shards: None
) -> DataOptions:
    """Of two shards."""
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", some_texts(50, ord(name)))
    return data_config(files=[f"{tmp_path}/*.jsonl"], tokenizer=str(tokenizer_json))


def paths_in(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in JSON, those of objects and lists too."""
    if not isinstance(values, dict | list):
        return [path]
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    return [path, *(p for key, value in inner for p in paths_in(value, (*path, key)))]


def changed(values: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    copy = json.loads(json.dumps(values))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return copy


def set_to(value: Any) -> Callable[[Any, Any], None]:
    return lambda holder, key: holder.__setitem__(key, value)


def remove(holder: Any, key: Any) -> None:
    del holder[key]


CHANGES = [remove, *(set_to(value) for value in (None, "x", -1, 2.5, True, [], {}, [3], {"x": 1}))]


def test_any_field_of_the_manifest(config: DataOptions, data_config: MakeConfig) -> None:
    """Whatever is taken away or put in a field's place is named, or does no harm."""
    folder = prepare(config, progress=False)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    tokens = data_config(source="tokens", path=str(folder))
    whole = open_data(tokens)
    for field in paths_in(manifest)[1:]:
        for change in CHANGES:
            path.write_text(json.dumps(changed(manifest, field, change)))
            try:
                opened = open_data(tokens)
            except UserError as error:
                assert str(folder) in str(error), field
            else:
                assert opened.train.n_tokens == whole.train.n_tokens, field
                assert opened.validation.n_tokens == whole.validation.n_tokens, field
    assert open_data(config).train.fingerprint == whole.train.fingerprint
    assert json.loads(path.read_text()) == manifest  # prepared again


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        (("eos_id",), remove, "eos_id is missing"),
        (("vocab_size",), set_to("300"), 'vocab_size is "300", not a whole number'),
        (("vocab_size",), set_to(290), "vocab_size is 290, and tokenizer.json has 300"),
        (("eos_id",), set_to(7), "splits.train.fingerprint is not that of its shards"),
        (
            ("splits", "train", "shards", 1),
            remove,
            "splits.train.fingerprint is not that of its shards",
        ),
        (("splits", "train"), set_to([]), "splits.train is [], not an object"),
        (
            ("splits", "validation", "shards", 0, "tokens", "items"),
            set_to(None),
            "splits.validation.shards[0].tokens.items is null, not a whole number",
        ),
        (("tokenizer", "sha256"), remove, "tokenizer.sha256 is missing"),
    ],
)
def test_a_damaged_manifest_is_named_by_its_field(
    config: DataOptions,
    data_config: MakeConfig,
    field: tuple[Any, ...],
    change: Callable[[Any, Any], None],
    said: str,
) -> None:
    folder = prepare(config, progress=False)
    path = folder / "manifest.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), field, change)))
    with pytest.raises(UserError) as caught:
        open_data(data_config(source="tokens", path=str(folder)))
    assert f"{path}: " in str(caught.value) and said in str(caught.value)
    assert "run cola-prepare again" in str(caught.value)


def test_any_field_of_a_job_s_record(config: DataOptions) -> None:
    folder = prepare(config, progress=False)
    path = folder / "job-00000.json"
    record, manifest = json.loads(path.read_text()), read_manifest(folder)
    fields = [field for field in paths_in(record)[1:] if len(field) > 1]  # what is of a shard
    for field in fields:
        for change in (remove, set_to(None), set_to(2.5), set_to([])):
            path.write_text(json.dumps(changed(record, field, change)))
            (folder / "manifest.json").unlink()
            assert read_manifest(prepare(config, progress=False)) == manifest, field
    for damaged in ([], "x", {"train": []}, {"test": record["train"]}):
        path.write_text(json.dumps(damaged))
        (folder / "manifest.json").unlink()
        assert read_manifest(prepare(config, progress=False)) == manifest


@pytest.mark.parametrize("damage", ["another", "missing", "cut short"])
def test_a_tokenizer_that_did_not_make_the_tokens(
    config: DataOptions, data_config: MakeConfig, damage: str
) -> None:
    folder = prepare(config, progress=False)
    path = folder / "tokenizer.json"
    if damage == "another":
        path.write_text(Tokenizer.train(some_texts(50, seed=9), 300).to_json())
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-100])
    with pytest.raises(UserError) as caught:
        open_data(data_config(source="tokens", path=str(folder)))
    expected = "cannot be read" if damage == "missing" else "its checksum differs"
    assert f"{path}: {expected}" in str(caught.value)
    assert "delete it and run cola-prepare again" in str(caught.value)
    path.unlink(missing_ok=True)  # as it says
    assert open_data(config).tokenizer.vocab_size == 300
