"""A small cache folder, a small tokenizer and the config fields that the data package reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import some_texts

from cola_train.data.options import SOURCES, DataOptions
from cola_train.data.tokenizer import Tokenizer

DEFAULTS: dict[str, Any] = {
    "source": "text", "validation_fraction": 0.1, "tokenizer": "train", "vocab_size": 300,
    "workers": 1,
}  # fmt: skip


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataOptions]:
    def make(**changes: Any) -> DataOptions:
        options = SOURCES[changes.get("source", DEFAULTS["source"])]
        own = {field.name for field in dataclasses.fields(options)}
        values = {**DEFAULTS, "cache_dir": str(tmp_path / "cache")}
        return options(**{k: v for k, v in values.items() if k in own} | changes)

    return make


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard for each file, however small."""
    monkeypatch.setattr("cola_train.data.preparation.SMALL_FILE_BYTES", 1)


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 tokens, so that a test need not train one."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(Tokenizer.train(some_texts(50), 300).to_json())
    return path
