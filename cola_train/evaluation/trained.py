"""A trained model with all that evaluating it needs: its tokenizer, and what its run was."""

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from cola_train.checkpoint.checkpointer import read_state
from cola_train.checkpoint.recorded import config_of_run, run_of
from cola_train.config.fields import OneOf, build
from cola_train.config.groups import ModelConfig
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.data.options import SOURCES, DataOptions, TokensOptions
from cola_train.data.preparation import is_complete
from cola_train.data.shards import TOKENIZER, read_manifest
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.evaluation.options import OF_THE_MODEL
from cola_train.evaluation.sets import Reader
from cola_train.inference.load import Checkpoint, Exported, chosen_dtype, load, source_at
from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX


@dataclass(frozen=True)
class _Given:
    data: Annotated[DataOptions, OneOf(SOURCES, tag="source")]


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode.

    path: what was loaded. tokenizer_file: of the tokens that it was trained on. config: of its
    run. state: what its checkpoint says beside weights.
    """

    path: Path
    model: Llama
    tokenizer: Tokenizer
    tokenizer_file: Path
    config: Config
    state: Mapping[str, Any]

    def reader(self) -> Reader:
        """As its run read text."""
        run = self.config.data
        identity = self.state.get("identity", {})
        mask = identity.get("data.document_mask", run.document_mask)
        run = replace(run, document_mask=mask if run.packing == "packed" else None)
        return Reader(run, self.tokenizer, self.tokenizer_file, self.model.config.vocab_size)

    def data(self, values: Mapping[str, Any]) -> DataOptions:
        """Of the options `data.*`. Without any, the run's very tokens, where they still are;
        without a source, the run's with these in place of its own.

        Raises:
            UserError: they are wrong.
        """
        loader = self.state.get("loader", {})
        folder = loader.get("folder")
        if not values and folder and is_complete(Path(folder)):
            made = read_manifest(Path(folder))["splits"]["train"]["fingerprint"]
            if made == loader.get("data"):
                return self.reader().read(TokensOptions("tokens", path=folder))
        whole = dict(values)
        if "source" not in values and self.config.data.source not in SOURCES:
            raise UserError(
                f"data: {self.path} does not say what it was trained on; name some, as in "
                "data=text data.validation_files=[book.txt]"
            )
        if "source" not in values:
            recorded = asdict(self.config.data)
            whole = {k: v for k, v in recorded.items() if k not in OF_THE_MODEL} | whole
        return data_of(whole, self.reader(), self.model.config, given=values)

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def loss_of(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed loss (fp32 scalar, nats) and number of predicted tokens."""
        batch = batch.to(self.device)
        loss = self.model(batch.inputs, batch.targets, batch.documents)
        return loss, int((batch.targets != IGNORE_INDEX).sum())


def data_of(
    values: Mapping[str, Any], reader: Reader, model: ModelConfig, given: Container[str]
) -> DataOptions:
    """The options of data of plain values, as the reader reads them. given: what was asked for.

    Raises:
        UserError: they are wrong.
    """
    problems: list[str] = []
    data = build(_Given, {"data": dict(values)}, "", problems).data
    if problems:
        raise UserError(*problems)
    data = reader.read(data, given=given)
    if problems := list(data.problems(model)):
        raise UserError(*problems)
    return data


def load_trained(path: str | Path, device: torch.device, precision: str = "run") -> Trained:
    """What `inference.load` loads, computing in `precision`: fp32 | bf16 | run (as its run did,
    where this device can; fp32 for an exported folder).

    Raises:
        UserError: as `inference.load.load` does.
    """
    source = source_at(path)
    if isinstance(source, Checkpoint):
        place, folder = source.path, run_of(source.path)
        config, state = config_of_run(place), read_state(place)
    else:
        assert isinstance(source, Exported)
        place = folder = source.folder.path
        config, state = source.config, {}
    precision = config.train.precision if precision == "run" else precision
    loaded = load(place, device, chosen_dtype(precision, device))
    return Trained(place, loaded.model, loaded.tokenizer, folder / TOKENIZER, config, state)
