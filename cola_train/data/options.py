"""The options of the data sources: where the text comes from, how it is tokenised and cut.

Imports nothing heavy: the planner reads a config too.
"""

import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

from cola_train.config.fields import Fraction, PathText, PositiveInt, Workers
from cola_train.config.groups import ModelConfig, VocabSize

# Options that leave the tokens of a corpus as they are.
BESIDE_THE_TOKENS = ("packing", "document_mask", "verify", "cache_dir", "workers")


def default_cache_dir() -> str:
    return os.environ.get("COLA_CACHE") or "~/.cache/cola_train"


def default_of(option: Field[Any]) -> object:
    """MISSING if there is none."""
    made = option.default_factory
    return option.default if made is MISSING else made()


@dataclass(frozen=True)
class DataOptions:
    """Where the text comes from; what every source takes."""

    source: str
    packing: Literal["packed", "per_document"] = "packed"  # rows across documents, or one in each
    document_mask: bool | None = None  # null: where the attention backend can do it at speed
    verify: bool = True  # compare the shards' checksums at start, the processes sharing the work

    def given(self) -> dict[str, Any]:
        """Options with another value than their default."""
        options = ((each, getattr(self, each.name)) for each in fields(self))
        return {each.name: value for each, value in options if value != default_of(each)}

    def masks_documents(self, at_speed: bool) -> bool:
        """Whether the documents of a packed row are hidden from each other; by default where that
        is `at_speed`."""
        if self.packing == "per_document":
            return False  # one document a row, its padding at the end: causality is enough
        return at_speed if self.document_mask is None else self.document_mask

    def problems(self, model: ModelConfig) -> Iterator[str]:
        """Options that others leave without effect."""
        if self.packing == "per_document" and self.document_mask is not None:
            yield (
                "data.document_mask: has no effect with data.packing=per_document, where a row is "
                "one document; leave it out"
            )


@dataclass(frozen=True)
class CorpusOptions(DataOptions):
    """What a source of text takes, which is tokenised here."""

    tokenizer: PathText = "train"  # a byte-level BPE of it; or a tokenizer.json, or a hub's name
    vocab_size: VocabSize = 4096  # of a tokenizer trained here
    cache_dir: PathText = field(default_factory=default_cache_dir)  # of shards; or $COLA_CACHE
    max_files: PositiveInt | None = None  # the first ones of the training files
    workers: Workers | None = None  # processes that tokenise; null: all cores

    text_field: ClassVar[str] = "text"
    validation_fraction: ClassVar[float] = 0.05

    def problems(self, model: ModelConfig) -> Iterator[str]:
        yield from super().problems(model)
        if self.tokenizer != "train" and self.vocab_size != model.vocab_size:
            yield (
                f"data.vocab_size: {self.vocab_size} has no effect with data.tokenizer="
                f"{self.tokenizer}, which is not trained here; leave it out"
            )

    def without_fraction(self, split: str) -> Iterator[str]:
        """Where the option `split` names the validation texts, a fraction of others is none."""
        if self.validation_fraction != CorpusOptions.validation_fraction:
            yield (
                f"data.validation_fraction: {self.validation_fraction} has no effect with {split}; "
                "leave one of them out"
            )


@dataclass(frozen=True)
class StdlibOptions(CorpusOptions):
    """The source of Python's own standard library."""

    validation_fraction: Fraction = 0.05  # type: ignore[misc]  # of documents


@dataclass(frozen=True)
class TextOptions(CorpusOptions):
    """The user's own files, by folders and patterns."""

    files: list[PathText] = field(default_factory=list)  # folders, patterns (`**` too), files
    validation_files: list[PathText] = field(default_factory=list)  # empty: a part of files
    text_endings: list[str] = field(default_factory=list)  # read as plain text too: [.md,.rst]
    validation_fraction: Fraction = 0.05  # type: ignore[misc]  # of documents, without validation_files
    text_field: str = "text"  # type: ignore[misc]  # of a JSON object or a Parquet row

    def problems(self, model: ModelConfig) -> Iterator[str]:
        yield from super().problems(model)
        if self.validation_files:
            yield from self.without_fraction("data.validation_files")


@dataclass(frozen=True)
class C4Options(CorpusOptions):
    """allenai/c4's English part."""

    path: PathText | None = None  # a folder of its files; null: the hub
    text_field: str = "text"  # type: ignore[misc]  # of a JSON object or a Parquet row
    tokenizer: PathText = "t5-base"  # a hub's name, or a tokenizer.json; train: one of its own


@dataclass(frozen=True, kw_only=True)
class HfOptions(CorpusOptions):
    """A dataset of the Hugging Face hub."""

    name: str  # on the hub, as Salesforce/wikitext
    config: str | None = None  # one of its configurations; null: its only or default one
    split: str = "train"  # the one to train on
    validation_split: str | None = None  # null: validation_fraction of the documents
    validation_fraction: Fraction = 0.05  # type: ignore[misc]  # of documents, without validation_split
    text_field: str = "text"  # type: ignore[misc]  # the column that holds the text
    revision: str | None = None  # a branch, tag or commit; null: the newest

    def problems(self, model: ModelConfig) -> Iterator[str]:
        yield from super().problems(model)
        if self.validation_split:
            yield from self.without_fraction("data.validation_split")


@dataclass(frozen=True, kw_only=True)
class TokensOptions(DataOptions):
    """Shards that cola-prepare wrote."""

    path: PathText  # the folder that cola-prepare printed


SOURCES: dict[str, type[DataOptions]] = {
    "stdlib": StdlibOptions,
    "text": TextOptions,
    "c4": C4Options,
    "hf": HfOptions,
    "tokens": TokensOptions,
}
