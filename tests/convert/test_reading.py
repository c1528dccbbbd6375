"""Folders of weights that others have written: read as they are, refused where they are not whole,
and never run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import llama, ours, qwen3, tokens, write_config
from safetensors.torch import load_file, save_file

from cola_train.convert.reading import open_folder
from cola_train.errors import UserError


def as_torch_files(folder: Path) -> None:
    """The same weights in two files of torch.save with an index, as transformers once wrote."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("kind", ["whole", "sharded", "torch", "tied", "theta", "qwen3"])
@torch.no_grad()
def test_others_weights_give_their_logits(kind: str, tmp_path: Path) -> None:
    fields = {"tied": {"tie_word_embeddings": True}, "theta": {"rope_theta": 5e5}}.get(kind, {})
    model = qwen3() if kind == "qwen3" else llama(**fields)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if kind == "sharded" else "1GB")
    if kind == "torch":
        as_torch_files(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert ("model.safetensors.index.json" in files) == (kind == "sharded")
    folder = open_folder(tmp_path)
    assert folder.config.train.sequence_length == 48
    torch.testing.assert_close(ours(folder)(tokens()), model(tokens()).logits)


@pytest.mark.parametrize("version", [4, 5])
def test_rope_theta_of_either_version_of_transformers(version: int, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    four, five = (
        {"rope_theta": 7e4},
        {"rope_parameters": {"rope_theta": 7e4, "rope_type": "default"}},
    )
    nothing = {"rope_theta": None, "rope_parameters": None, "rope_scaling": None}
    write_config(tmp_path, **{**nothing, **(four if version == 4 else five)})
    assert open_folder(tmp_path).description.model.rope_theta == 7e4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads: 1 of 2 heads: grouped-query"),
        ({"head_dim": 32}, "head_dim: 32"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 16}, "sliding_window: 16"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type: 'llama3'"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "long_factor: [1.0]"),
        ({"model_type": "qwen2"}, "model_type: 'qwen2'"),
        ({"model_type": ["llama"]}, "model_type: ['llama']"),
        ({"hidden_size": "32"}, "hidden_size: must be"),
        ({"vocab_size": None}, "vocab_size: must be"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3"),
        ({"rms_norm_eps": "small"}, "norm_eps"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"vocab_size": 301}, "embed_tokens.weight is (300, 32), and by config.json (301, 32)"),
        ({"num_hidden_layers": 3}, "no model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight, "),
    ],
)  # fmt: skip
def test_a_config_of_another_model_is_refused(
    fields: dict[str, object], said: str, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path)
    write_config(tmp_path, **fields)
    with pytest.raises(UserError) as caught:
        open_folder(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_torch(folder: Path) -> None:
    as_torch_files(folder)
    file = folder / "pytorch_model-2.bin"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_file(folder: Path) -> None:
    as_torch_files(folder)
    (folder / "pytorch_model-2.bin").unlink()


def lose_a_tensor(folder: Path) -> None:
    as_torch_files(folder)
    file = folder / "pytorch_model-2.bin"
    torch.save(dict(list(torch.load(file).items())[1:]), file)


def point_elsewhere(folder: Path) -> None:
    as_torch_files(folder)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("pytorch_model-2", "../pytorch_model-2"))


def plant(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(folder / "ran")}, folder / "pytorch_model.bin")


def hollow(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.empty(3, device="meta")}, folder / "pytorch_model.bin")


def number(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({3: torch.ones(3)}, folder / "pytorch_model.bin")


def with_optimizer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"model": weights, "step": 3}, folder / "pytorch_model.bin")


def integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: w.to(torch.int8) for n, w in weights.items()}, folder / "model.safetensors")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (cut, "model.safetensors: not whole"),
    (cut_torch, "pytorch_model-2.bin: not whole"),
    (lose_a_file, "pytorch_model-2.bin: missing, with "),
    (lose_a_tensor, "pytorch_model-2.bin: has no "),
    (point_elsewhere, "is no file beside it"),
    (plant, "or more than weights, which is not read: it could run code"),
    (with_optimizer, "model is no plain tensor"),
    (hollow, "lm_head.weight is no plain tensor"),
    (number, "3 is no plain tensor"),
    (integers, "is of I8"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: broken"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json: holds no fields"),
    (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no weights there"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_what_is_not_whole_is_named(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        open_folder(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_folder(tmp_path / "nowhere")
