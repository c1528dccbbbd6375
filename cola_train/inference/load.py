"""A trained model with what is needed to use it, and without its engine, optimizer and data."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from cola_train.checkpoint.checkpointer import load_part, newest_good, read_state
from cola_train.checkpoint.recorded import config_of, run_of
from cola_train.config.schema import Config
from cola_train.convert.reading import Folder, is_folder, open_folder
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.engines.base import persistent_buffers
from cola_train.errors import UserError
from cola_train.hardware import compute_dtype
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding


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
    source, device = source_at(path), torch.device(device)
    config = _runnable(source.config, device, dtype)
    tokenizer = source.tokenizer()
    weights = build_method(config, device).fold(source.weights(config))
    config = replace(config, method=config.method.folded)
    return Trained(_model(config, weights, device, dtype), tokenizer, config)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Llama:
    """The same without a tokenizer, its weights as they were trained: fp32, of the model's own
    shapes, without padding, on `device`, in evaluation mode.

    `model(tokens_BT)` gives logits (B, T, V), T at most the sequence length it was trained with.
    """
    source, device = source_at(path), torch.device(device)
    config = _runnable(source.config, device, torch.float32)
    return _model(config, source.weights(config), device, torch.float32)


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
    """Where a model comes from. weights: parameters and persistent buffers, by name, on the CPU."""

    @property
    def config(self) -> Config: ...

    def weights(self, config: Config) -> dict[str, Tensor]: ...

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

    def weights(self, config: Config) -> dict[str, Tensor]:
        return {name: self.folder.read(name).contiguous() for name in self.folder.shapes}

    def tokenizer(self) -> Tokenizer:
        fix = "bring the model's there"
        return _fitting(self.folder.path / TOKENIZER, self.config.model.vocab_size, fix)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, whose tokenizer is in its run's folder."""

    path: Path

    @property
    def config(self) -> Config:
        return config_of(self.path)

    def weights(self, config: Config) -> dict[str, Tensor]:
        model = _on_meta(config, torch.device("cpu"))
        named = [*model.named_parameters(), *persistent_buffers(model)]
        weights = {name: torch.empty_like(like.detach(), device="cpu") for name, like in named}
        load_part(self.path, {f"model.{name}": tensor for name, tensor in weights.items()})
        return weights

    def tokenizer(self) -> Tokenizer:
        path, state = run_of(self.path) / TOKENIZER, read_state(self.path)
        fix = f"bring back the one of the run that saved {self.path}"
        # earlier versions left it with the tokens alone
        kept = Path(str(state.get("loader", {}).get("folder", ""))) / TOKENIZER
        if not path.is_file() and kept.is_file():
            fix = f"copy {kept} there"
        return _fitting(path, self.config.model.vocab_size, fix, state.get("tokenizer"))


def _fitting(path: Path, vocab_size: int, fix: str, sha256: str | None = None) -> Tokenizer:
    """The tokenizer of a model with so many tokens; sha256: of its file, where that is known."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
    if sha256 not in (None, digest):
        raise UserError(f"{path}: another tokenizer than the model's: its checksum differs; {fix}")
    tokenizer = Tokenizer.load(str(path))
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: another tokenizer than the model's: it has {tokenizer.vocab_size} tokens, "
            f"and the model {vocab_size}; {fix}"
        )
    return tokenizer


def _runnable(config: Config, device: torch.device, dtype: torch.dtype) -> Config:
    """For the same function on another device and in another dtype, which nothing has compiled."""
    precision: Literal["bf16", "fp32"] = "fp32" if dtype == torch.float32 else "bf16"
    attention = config.model.attention if device.type == "cuda" else "sdpa"
    return replace(
        config,
        model=replace(config.model, attention=attention),
        train=replace(config.train, precision=precision, compile=False),
        kernels="auto",
    )


def _on_meta(config: Config, device: torch.device) -> Llama:
    """The model without padding, as it will run on `device`."""
    model = build_model(config, build_method(config, device), device)
    remove_padding(model)
    return model


def _model(
    config: Config, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Llama:
    """Of these weights, which it takes over."""
    model = _on_meta(config, device)
    for module in model.modules():  # what no checkpoint holds, like RoPE's table
        for name in module._non_persistent_buffers_set:
            setattr(module, name, torch.empty_like(module.get_buffer(name), device=device))
    initialise(model, config.seed, but=weights.keys())
    parameters = {name for name, _ in model.named_parameters()}
    for name in list(weights):  # one at a time, so that few are there twice
        weights[name] = weights[name].to(device, dtype if name in parameters else None)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
