"""A small cache folder, a small tokenizer and the config fields that the data package reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import some_texts

from cola_train.config.schema import DataConfig
from cola_train.data import Tokenizer

DEFAULTS: dict[str, Any] = {
    "source": "text",
    "path": None,
    "files": [],
    "validation_files": [],
    "validation_fraction": 0.1,
    "text_field": "text",
    "max_files": None,
    "tokenizer": "train",
    "vocab_size": 300,
    "packing": "packed",
    "document_mask": None,
    "workers": 1,
    "verify": True,
}


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        return DataConfig(**{**DEFAULTS, "cache_dir": str(tmp_path / "cache"), **changes})

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
