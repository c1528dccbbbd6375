"""The data that a trained model is evaluated on, in its own tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from cola_train.config.fields import OneOf, build
from cola_train.data.dataset import TokenDataset
from cola_train.data.inputs import Split
from cola_train.data.options import SOURCES, CorpusOptions, DataOptions, TokensOptions
from cola_train.data.preparation import is_complete, prepared_before
from cola_train.data.prepared import open_split, tokenizer_of
from cola_train.data.shards import read_manifest
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.evaluation.trained import Trained

# What a set takes from the model: its text is read as the model was trained to read.
OF_THE_RUN = ("tokenizer", "vocab_size")


@dataclass(frozen=True)
class _Given:
    data: Annotated[DataOptions, OneOf(SOURCES, tag="source")]


def own_data(trained: Trained) -> DataOptions:
    """Of the run: its very tokens, where they still are; else made anew of its text.

    Raises:
        UserError: the text is not there.
    """
    loader = trained.state.get("loader", {})
    folder = loader.get("folder")
    if folder and is_complete(Path(folder)):
        made = read_manifest(Path(folder))["splits"]["train"]["fingerprint"]
        if made == loader["data"]:
            return as_it_reads(TokensOptions("tokens", path=folder), trained, {})
    return as_it_reads(trained.config.data, trained, {})


def given_data(values: Mapping[str, Any], trained: Trained) -> DataOptions:
    """Of the options `data.*`; without a source, the run's with these in place of its own.

    Raises:
        UserError: they are wrong; none is given and the run's text is not there.
    """
    if not values:
        return own_data(trained)
    whole = dict(values)
    if "source" not in values:
        recorded = asdict(trained.config.data)
        whole = {k: v for k, v in recorded.items() if k not in OF_THE_RUN} | whole
    problems: list[str] = []
    options = build(_Given, {"data": whole}, "", problems).data
    if problems:
        raise UserError(*problems)
    return as_it_reads(options, trained, values)


def as_it_reads(options: DataOptions, trained: Trained, given: Mapping[str, Any]) -> DataOptions:
    """In the model's tokens, and, where not `given`, packed and masked as it was trained.

    Raises:
        UserError: another option makes one of them void.
    """
    run = trained.config.data
    if "packing" not in given:
        options = replace(options, packing=run.packing)
    if "document_mask" not in given:
        known = trained.state.get("identity", {}).get("data.document_mask", run.document_mask)
        options = replace(options, document_mask=known if options.packing == "packed" else None)
    if isinstance(options, CorpusOptions):
        file, vocab_size = trained.tokenizer_file, trained.model.config.vocab_size
        options = of_these_tokens(options, run, trained.tokenizer, file, vocab_size)
    if problems := list(options.problems(trained.model.config)):
        raise UserError(*problems)
    return options


def of_these_tokens(
    options: CorpusOptions, run: DataOptions, tokenizer: Tokenizer, file: Path, vocab_size: int
) -> DataOptions:
    """A corpus in a run's tokens: those that the run has made of it, or else new ones.

    run: its data. file: of its tokenizer. vocab_size: of its model.
    """
    if isinstance(run, CorpusOptions):
        same = {name: getattr(run, name) for name in (*OF_THE_RUN, "cache_dir")}
        folder = prepared_before(replace(options, **same))
        if folder is not None and tokenizer_of(folder).same_tokens(tokenizer):
            beside = {field.name: getattr(options, field.name) for field in fields(DataOptions)}
            return TokensOptions(**{**beside, "source": "tokens"}, path=str(folder))
    return replace(options, tokenizer=str(file), vocab_size=vocab_size)


def open_set(
    options: DataOptions, split: Split, tokenizer: Tokenizer, model_vocab_size: int
) -> TokenDataset:
    """Its tokens, prepared where needed; all processes together.

    Raises:
        UserError: it cannot be read, or its tokens are not of the model's tokenizer.
    """
    dataset = open_split(options, split, model_vocab_size)
    if not tokenizer_of(dataset.folder).same_tokens(tokenizer):
        raise UserError(
            f"data: the tokens in {dataset.folder} are of another tokenizer than the model's: "
            "give the text itself, data=text data.validation_files=[...]"
        )
    return dataset
