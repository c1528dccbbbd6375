"""Folders that transformers writes, and the model that we read from a folder."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from cola_train.convert.reading import Folder
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 43, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 48,
}  # fmt: skip


def llama(**fields: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**TINY, **fields})).eval()


def qwen3() -> Qwen3ForCausalLM:
    """Of as many heads of keys as of queries, its norms not what they begin with."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16, num_key_value_heads=2)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.add_(0.3 * torch.randn_like(weight))
    return model


def ours(folder: Folder) -> Llama:
    """The model of a folder, by nothing but what it gives."""
    model = build_model(folder.config, build_method(folder.config, CPU), CPU)
    remove_padding(model)
    model.to_empty(device=CPU)
    initialise(model, 0)
    for name, weight in model.named_parameters():
        weight.data.copy_(folder.read(name))
    return model.eval().requires_grad_(False)


def tokens() -> Tensor:
    return torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))


def write_config(folder: Path, **fields: object) -> None:
    """Lay fields over what the config.json says; None: take it out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )
