"""A folder of config.json and weights as a model of ours: its config, and its weights by our names.

It reads our exports, LlamaForCausalLM's checkpoints and those of CoLA's reference code, and runs
nothing of what is there.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cola_train.checkpoint.files import first_few
from cola_train.config.schema import Config
from cola_train.convert.description import CONFIG, Description, describe
from cola_train.convert.folding import kinds_of
from cola_train.convert.names import exported_names
from cola_train.convert.official import is_official, is_split, official_names
from cola_train.convert.weights import DTYPES, INDEX, Weights
from cola_train.errors import UserError

EMBEDDING, HEAD = "embedding.weight", "head.weight"
DERIVED = ".rotary_emb.inv_freq"  # end of the names of what old checkpoints hold, and follows


@dataclass(frozen=True)
class Folder:
    """shapes: of the weights, by our names. theirs: their names in the folder, of which those of
    `transposed` are stored so."""

    path: Path
    description: Description
    shapes: Mapping[str, torch.Size]
    theirs: Mapping[str, str]
    transposed: frozenset[str]
    weights: Weights

    @property
    def config(self) -> Config:
        """For building the model in fp32, uncompiled."""
        return self.description.config()

    @property
    def is_untied(self) -> bool:
        """Whether the head is read from the embedding, which the model has twice."""
        return self.theirs[HEAD] == self.theirs[EMBEDDING]

    def unread(self, *used: str) -> list[str]:
        """Names of the folder's files that nothing here reads, nor those who read `used`."""
        read = {*used, CONFIG, *(path.name for path in self.weights.paths.values())}
        names = (path.name for path in self.path.iterdir())
        return sorted(name for name in names if name not in read and not name.endswith(INDEX))

    def read(self, name: str) -> Tensor:
        """The weight that we call so, in our layout and the dtype that it is stored in: not to be
        changed.

        Raises:
            UserError: its file cannot be read.
        """
        tensor = self.weights.read(self.theirs[name])
        return tensor.t() if name in self.transposed else tensor


def is_folder(path: Path) -> bool:
    """Whether it is one of an exported model, whole or not, rather than a run or a checkpoint."""
    return os.path.isfile(path / CONFIG)


def open_folder(path: Path) -> Folder:
    """Raises:
    UserError: it is no such folder, or not whole; the model is one that ours cannot be; names,
        shapes or dtypes of weights are not those of the model.
    """
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder")
    description = describe(path)
    weights = Weights(path)
    shapes = {name: shape for name, (_, shape) in kinds_of(description.config()).items()}
    if is_official(weights.tensors):
        layers, split = description.model.n_layers, is_split(weights.tensors)
        theirs = official_names(shapes, layers, split)
    else:
        theirs = exported_names(shapes)
    if description.tied and theirs[HEAD] not in weights.tensors:
        theirs[HEAD] = theirs[EMBEDDING]
    transposed = frozenset(name for name in theirs if is_official([theirs[name]]))
    folder = Folder(path, description, shapes, theirs, transposed, weights)
    if problems := [*_wrong_names(folder), *_wrong_tensors(folder)]:
        raise UserError(
            *problems,
            f"{path}: {CONFIG} and weights are not of one model; copy the folder anew, or mend "
            f"{CONFIG}",
        )
    return folder


def _wrong_names(folder: Folder) -> Iterable[str]:
    found, expected = folder.weights.tensors.keys(), set(folder.theirs.values())
    if missing := sorted(expected - found):
        yield f"{folder.path}: no {first_few(missing)} among the weights"
    others = sorted(name for name in found - expected if not name.endswith(DERIVED))
    if others:
        where = folder.weights.paths[others[0]]
        yield f"{where}: {first_few(others)}: unexpected, the model has no such weight"


def _wrong_tensors(folder: Folder) -> Iterable[str]:
    wrong = []
    for name, shape in folder.shapes.items():
        theirs = folder.theirs[name]
        if (stored := folder.weights.tensors.get(theirs)) is None:
            continue
        where = f"{folder.weights.paths[theirs]}: {theirs}"
        expected = tuple(reversed(shape)) if name in folder.transposed else tuple(shape)
        if stored.shape != expected:
            wrong.append(f"{where} is {stored.shape}, and by {CONFIG} {expected}")
        elif isinstance(stored.dtype, str):
            wrong.append(f"{where} is of {stored.dtype}; weights have {', '.join(DTYPES)}")
    if wrong:
        yield first_few(wrong, "\n")
