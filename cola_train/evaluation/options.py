"""What is evaluated in a run, when, and on what. Imports nothing heavy."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated

from cola_train.config.fields import NaturalInt, OneOf, PositiveInt
from cola_train.config.groups import BatchSize, ModelConfig
from cola_train.data.options import SOURCES, CorpusOptions, DataOptions
from cola_train.errors import UserError

# Of a set of data, what it takes from the model: its text is read as that was trained to read.
OF_THE_MODEL = ("tokenizer", "vocab_size")

ValidationSet = Annotated[DataOptions, OneOf(SOURCES, tag="source")]


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation as the run goes, and the sample at its end."""

    every: NaturalInt = 100  # steps; 0: at the end only
    tokens: PositiveInt | None = 262_144  # null: the whole validation split
    batch_size: BatchSize = 32  # sequences of one process at a time
    # name -> further data, as {wiki: {source: text, validation_files: [wiki]}}, with options of
    # data; the loss of each is logged as val_loss/NAME
    sets: dict[str, ValidationSet] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)  # of lm-evaluation-harness: names, YAML files
    tasks_every: NaturalInt = 0  # steps; 0: at the end only
    task_limit: PositiveInt | None = None  # examples of each task; null: all
    sample_prompt: str = ""  # what the sample begins with
    sample_tokens: NaturalInt = 128  # its length; 0: none


def void_options(config: EvaluationConfig) -> Iterator[str]:
    """Options that have no effect without another."""
    for name in ("tasks_every", "task_limit") if not config.tasks else ():
        if getattr(config, name):
            yield f"evaluation.{name}: has no effect without evaluation.tasks; name some"


def set_problems(sets: Mapping[str, DataOptions], model: ModelConfig, option: str) -> Iterator[str]:
    """Mistakes in sets of data that show without reading. option: what they are the value of."""
    for name, data in sets.items():
        place = f"{option}.{name}"
        if not re.fullmatch(r"[\w-]+", name):
            yield f"{option}: {name!r} is no name; use letters, digits, _ and -"
        for key in OF_THE_MODEL:
            if key in data.given():
                yield f"{place}.{key}: the model's own is taken, no other fits; leave it out"
        for problem in of_any_tokens(data).problems(model):
            yield of_set(problem, place)


def of_any_tokens(data: DataOptions) -> DataOptions:
    """The same without a tokenizer, for checks that come before the model's is there."""
    if isinstance(data, CorpusOptions):
        return replace(data, tokenizer="train", vocab_size=CorpusOptions.vocab_size)
    return data


@contextmanager
def place_of(place: str) -> Iterator[None]:
    """Problems of options of data are said to be those of a set."""
    try:
        yield
    except UserError as error:
        raise UserError(*(of_set(problem, place) for problem in error.problems)) from error


def of_set(problem: str, place: str) -> str:
    """A problem of options of data, where these are a set's."""
    return re.sub(r"\bdata\.(?=[a-z])", f"{place}.", problem)
