"""A trained model with what is needed to use it, and without its engine, optimizer and data."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from cola_train.checkpoint.checkpointer import load_part, newest_good, read_state
from cola_train.checkpoint.recorded import config_of, run_of
from cola_train.config.schema import Config
from cola_train.convert.folding import FoldedWeights, kinds_of
from cola_train.convert.reading import Folder, is_folder, open_folder
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.hardware import compute_dtype
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding

Weights = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, with the tokenizer that made its text into tokens."""

    model: Llama
    tokenizer: Tokenizer
    config: Config  # of the model as it is here, whose method is what `MethodOptions.folded` says


def load(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Trained:
    """The model of a run's folder (its newest good checkpoint), of one checkpoint, saved by any
    engine on any number of processes, or of an exported folder. Its weights are folded. Nothing
    that is there can run code.

    dtype: of weights and activations.

    Raises:
        UserError: no good checkpoint or export is there, or it does not say what model it is of;
            its tokenizer is missing, or another one.
    """
    source = source_at(path)
    tokenizer = source.tokenizer()
    config, weights = source.folded()
    return Trained(_model(config, weights, torch.device(device), dtype), tokenizer, config)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Llama:
    """The same without a tokenizer, its weights as they were trained: fp32, of the model's own
    shapes, without padding, on `device`, in evaluation mode.

    `model(tokens_BT)` gives logits (B, T, V), T at most the sequence length it was trained with.
    """
    source = source_at(path)
    return _model(source.config, source.weights(), torch.device(device), torch.float32)


def chosen_device(name: str) -> torch.device:
    """auto: a GPU if there is one.

    Raises:
        UserError: the one named is not there.
    """
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise UserError("device: torch sees no GPU here; say device=cpu")
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """bf16 or fp32; auto: bf16 where the hardware has it."""
    return compute_dtype(name, device)


class Source(Protocol):
    """Where a model comes from. Weights are parameters and persistent buffers by name, on the CPU,
    read as they are asked for."""

    @property
    def config(self) -> Config: ...

    def weights(self) -> Weights: ...

    def folded(self) -> tuple[Config, Weights]:
        """The plainest model that computes the same."""
        ...

    def tokenizer(self) -> Tokenizer: ...


def source_at(path: str | Path) -> Source:
    """What is there."""
    path = Path(path).expanduser()
    return Exported(open_folder(path)) if is_folder(path) else Checkpoint(newest_good(path))


@dataclass(frozen=True)
class Exported:
    """A folder of config.json, weights and tokenizer."""

    folder: Folder

    @property
    def config(self) -> Config:
        return self.folder.config

    def weights(self) -> Weights:
        return ((name, self.folder.read(name).contiguous()) for name in self.folder.shapes)

    def folded(self) -> tuple[Config, Weights]:
        return self.config, self.weights()

    def tokenizer(self) -> Tokenizer:
        fix = "bring the model's there"
        return Tokenizer.of_model(self.folder.path / TOKENIZER, self.config.model.vocab_size, fix)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, whose tokenizer is in its run's folder."""

    path: Path

    @property
    def config(self) -> Config:
        return config_of(self.path)

    def weights(self) -> Weights:
        kinds = kinds_of(self.config)
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
        load_part(self.path, {f"model.{name}": tensor for name, tensor in tensors.items()})
        yield from tensors.items()

    def folded(self) -> tuple[Config, Weights]:
        weights = FoldedWeights(self.path, self.config)
        return weights.plain, weights

    def tokenizer(self) -> Tokenizer:
        path, state = run_of(self.path) / TOKENIZER, read_state(self.path)
        fix = f"bring back the one of the run that saved {self.path}"
        # earlier versions left it with the tokens alone
        kept = Path(str(state.get("loader", {}).get("folder", ""))) / TOKENIZER
        if not path.is_file() and kept.is_file():
            fix = f"copy {kept} there"
        return Tokenizer.of_model(path, self.config.model.vocab_size, fix, state.get("tokenizer"))


def _model(config: Config, weights: Weights, device: torch.device, dtype: torch.dtype) -> Llama:
    """Of these weights."""
    precision: Literal["bf16", "fp32"] = "fp32" if dtype == torch.float32 else "bf16"
    attention = config.model.attention if device.type == "cuda" else "sdpa"
    config = replace(
        config,
        model=replace(config.model, attention=attention),
        train=replace(config.train, precision=precision),
    )
    model = build_model(config, build_method(config, device), device)
    remove_padding(model)
    for module in model.modules():  # what no checkpoint holds, like RoPE's table
        for name in module._non_persistent_buffers_set:
            setattr(module, name, torch.empty_like(module.get_buffer(name), device=device))
    floats = {name for name, _ in model.named_parameters()}
    state = {name: of.to(device, dtype if name in floats else None) for name, of in weights}
    initialise(model, config.seed, but=state.keys())
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
