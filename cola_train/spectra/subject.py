"""A model to look at, whoever it is of, with what its text is read by."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cola_train import hardware
from cola_train.checkpoint.recorded import run_of
from cola_train.convert.description import CONFIG, METHOD_OF, describe
from cola_train.convert.reading import is_folder
from cola_train.data.loader import Batch
from cola_train.data.options import DataOptions
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.evaluation.sets import Reader
from cola_train.evaluation.trained import Trained, data_of, load_trained
from cola_train.files import read_json
from cola_train.inference.load import Checkpoint, chosen_dtype, source_at
from cola_train.methods import METHODS
from cola_train.spectra import huggingface, own
from cola_train.spectra.recorder import Linear, Recorder

LENGTH = 1024  # tokens of a sequence of a model that may be made for many more


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode.

    path: what was loaded. folder: where what is found about it goes. linears: of its blocks.
    parameters: of the whole model. watch(recorder, layers): shows the recorder what flows through
    those of these blocks. run: a forward pass. data: of the options `data.*`. length, longest:
    tokens of a sequence by default, and at most (None: unknown). at_speed: whether documents of a
    row can be hidden from each other at speed; None: they cannot.
    """

    path: Path
    folder: Path
    linears: Sequence[Linear]
    parameters: int
    watch: Callable[[Recorder, Sequence[int]], AbstractContextManager[None]]
    run: Callable[[Batch], object]
    reader: Reader
    data: Callable[[Mapping[str, Any]], DataOptions]
    length: int
    longest: int | None
    at_speed: bool | None

    @property
    def layers(self) -> int:
        """Blocks."""
        return max((linear.layer for linear in self.linears), default=-1) + 1


def open_subject(
    path: Path, device: torch.device, precision: str, trust_remote_code: bool
) -> Subject:
    """A run's model (its newest good checkpoint), a checkpoint's, an exported one's, or any causal
    language model that transformers loads from its folder.

    precision: fp32 | bf16. trust_remote_code: whether the folder's own modelling code runs; then
    transformers loads the model, be it ours or not.

    Raises:
        UserError: it cannot be loaded, or has no linears; there is no code to trust.
    """
    if trust_remote_code and not (is_folder(path) and huggingface.has_code(path)):
        raise UserError(f"trust_remote_code: {path} has no modelling code to trust; leave it out")
    if is_folder(path) and (trust_remote_code or not is_ours(path)):
        subject = of_transformers(path, device, precision, trust_remote_code)
    else:
        subject = of_trained(load_trained(path, device, precision))
    if not subject.linears:
        raise UserError(f"run_dir: {path}: its blocks have no linears that are modules of torch's")
    return subject


def is_ours(folder: Path) -> bool:
    """Whether its config.json is of a model that cola_train can be.

    Raises:
        UserError: it is of one that no other can be, and is not right.
    """
    try:
        describe(folder)
    except UserError:
        if others_know(folder):
            return False
        raise
    return True


def others_know(folder: Path) -> bool:
    """Whether transformers may have a model of its own of that type."""
    try:
        kind = read_json(folder / CONFIG)["model_type"]
        return kind not in METHOD_OF or METHODS[METHOD_OF[kind]].modeling is None
    except (OSError, ValueError, TypeError, KeyError):
        return False


def of_trained(trained: Trained) -> Subject:
    model, attention = trained.model, trained.config.model.attention

    def run(batch: Batch) -> object:
        batch = batch.to(trained.device)
        return model(batch.inputs, documents_BT=batch.documents, last=1)

    run_dir = isinstance(source_at(trained.path), Checkpoint)
    return Subject(
        path=trained.path,
        folder=run_of(trained.path) if run_dir else trained.path,
        linears=own.linears_of(model),
        parameters=sum(p.numel() for p in model.parameters()),
        watch=partial(own.watching, model),
        run=run,
        reader=trained.reader(),
        data=trained.data,
        length=model.max_length,
        longest=model.max_length,
        at_speed=hardware.masks_at_speed(attention, trained.device),
    )


def of_transformers(
    folder: Path, device: torch.device, precision: str, trust_remote_code: bool
) -> Subject:
    dtype = chosen_dtype(precision, device)
    model = huggingface.load_model(folder, device, dtype, trust_remote_code)
    shape, longest = huggingface.shape_of(model), huggingface.longest(model)
    fix = (
        "`transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes it, "
        "where transformers knows the model's"
    )
    tokenizer = Tokenizer.of_model(folder / TOKENIZER, shape.vocab_size, fix)
    reader = Reader(DataOptions(""), tokenizer, folder / TOKENIZER, shape.vocab_size)

    def run(batch: Batch) -> object:  # without the head
        return model.base_model(input_ids=batch.to(device).inputs, use_cache=False)

    def data(values: Mapping[str, Any]) -> DataOptions:
        if "source" not in values:
            raise UserError(
                f"data: {folder} does not say what it was trained on; name some, as in data=text "
                "data.validation_files=[book.txt]"
            )
        if values.get("document_mask"):
            raise UserError(
                "data.document_mask: transformers' models see a row as one document; leave it out"
            )
        return data_of(values, reader, shape, given=values)

    return Subject(
        path=folder,
        folder=folder,
        linears=list(huggingface.linears_of(model).values()),
        parameters=sum(p.numel() for p in model.parameters()),
        watch=partial(huggingface.watching, model),
        run=run,
        reader=reader,
        data=data,
        length=min(LENGTH, longest or LENGTH),
        longest=longest,
        at_speed=None,
    )
