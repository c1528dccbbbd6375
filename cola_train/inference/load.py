"""A trained model, without its engine, its optimizer or its data."""

from pathlib import Path

import torch

from cola_train.checkpoint.checkpointer import load_part, newest_good
from cola_train.checkpoint.recorded import config_of
from cola_train.engines.base import persistent_buffers
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Llama:
    """The model of a run's folder (its newest good checkpoint) or of one checkpoint, saved by any
    engine on any number of processes: fp32 weights of the model's own shapes, without padding, on
    `device`, in evaluation mode.

    `model(tokens_BT)` gives logits (B, T, V), T at most the sequence length it was trained with.

    Raises:
        UserError: no good checkpoint is there, or it does not say what model it is of.
    """
    checkpoint = newest_good(Path(path).expanduser())
    config, device = config_of(checkpoint), torch.device(device)
    model = build_model(config, build_method(config, device), device)
    remove_padding(model)
    model.to_empty(device=device)
    initialise(model, config.seed)  # for what no checkpoint holds, like RoPE's table
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"model.{name}": buffer for name, buffer in persistent_buffers(model)}
    load_part(checkpoint, tensors)
    return model.eval().requires_grad_(False)
