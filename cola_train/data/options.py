"""The options of the data sources: where the text comes from, how it is tokenised and cut.

Imports nothing heavy: the planner reads a config too.
"""

import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cola_train.config.fields import Fraction, PositiveInt


def default_cache_dir() -> str:
    return os.environ.get("COLA_CACHE") or "~/.cache/cola_train"


@dataclass(frozen=True)
class DataOptions:
    """What every source takes."""

    source: str
    tokenizer: str = "train"  # a byte-level BPE of the corpus; or a tokenizer.json, or a hub's name
    vocab_size: PositiveInt = 4096  # of a tokenizer trained here
    cache_dir: str = field(default_factory=default_cache_dir)
    validation_fraction: Fraction = 0.05  # of documents, where there is no split of its own
    max_files: PositiveInt | None = None  # the first ones of the training files
    packing: Literal["packed", "per_document"] = "packed"
    document_mask: bool | None = None  # null: where the attention backend can do it at speed
    workers: PositiveInt | None = None  # null: all cores
    verify: bool = True  # compare the shards' checksums at start, the processes sharing the work

    text_field: ClassVar[str] = "text"


@dataclass(frozen=True)
class StdlibOptions(DataOptions):
    """The source of Python's own standard library."""


@dataclass(frozen=True)
class TextOptions(DataOptions):
    """The user's own files, by patterns."""

    files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    text_field: str = "text"  # type: ignore[misc]  # an option here


@dataclass(frozen=True)
class C4Options(DataOptions):
    """allenai/c4's English part."""

    path: str | None = None  # a folder of its files; null: the hub
    text_field: str = "text"  # type: ignore[misc]
    tokenizer: str = "t5-base"


@dataclass(frozen=True, kw_only=True)
class TokensOptions(DataOptions):
    """Shards that cola-prepare wrote."""

    path: str


SOURCES: dict[str, type[DataOptions]] = {
    "stdlib": StdlibOptions,
    "text": TextOptions,
    "c4": C4Options,
    "tokens": TokensOptions,
}
