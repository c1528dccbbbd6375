"""A trained model as a folder that transformers loads: what `cola-export` writes.

The folder appears when it is whole. Weights pass one block at a time (folding.py), so the machine
need not hold the model.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_train.checkpoint.checkpointer import newest_good
from cola_train.checkpoint.files import read_state
from cola_train.checkpoint.recorded import config_of, run_of
from cola_train.checkpoint.tensor_file import Kind
from cola_train.config.schema import Config
from cola_train.convert.card import card
from cola_train.convert.folding import FoldedWeights
from cola_train.convert.names import exported_names
from cola_train.convert.output import new_folder, refuse_existing
from cola_train.convert.shards import shards_of, size_of, write_shards
from cola_train.convert.tokenizer_files import tokenizer_files
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.files import write_json, write_text
from cola_train.progress import Bar

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# transformers' names: of the class that finds one of ours, the end of ours.
CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


def export(
    run: Path, out: Path, *, dtype: str, shard_bytes: int, tokenizer: Path | None = None
) -> Path:
    """Write the newest good checkpoint of `run`, or the checkpoint that it is, into the new folder
    `out`; returns the checkpoint.

    dtype: of the weights, a name of DTYPES. shard_bytes: in one file at most, or one weight.
    tokenizer: a tokenizer.json; None: the run's.

    Raises:
        UserError: there is no good checkpoint or tokenizer, the method has no place in an exported
            model, `out` is there already or cannot be written, or a weight is too large for fp16.
    """
    refuse_existing(out)
    checkpoint = newest_good(run)
    config = config_of(checkpoint)
    weights = FoldedWeights(checkpoint, config)
    kinds = exported_kinds(weights, DTYPES[dtype])
    text = load_tokenizer(tokenizer, checkpoint, config)
    modeling = modeling_file(weights.plain)
    parameters = sum(shape.numel() for _, shape in kinds.values())
    documents = {
        "config.json": config_json(weights.plain, DTYPES[dtype], text, modeling),
        **tokenizer_files(text, config.train.sequence_length),
    }
    readme = card(checkpoint, parameters, modeling is not None, dtype)
    with new_folder(out, sum(map(size_of, kinds.values()))) as folder:
        write_shards(folder, shards_of(kinds, shard_bytes), cast(weights, DTYPES[dtype]))
        for name, content in documents.items():
            write_json(folder / name, content)
        if modeling is not None:
            write_text(folder / modeling.name, modeling.read_text(encoding="utf-8"))
        write_text(folder / "README.md", readme)
    return checkpoint


def exported_kinds(weights: FoldedWeights, dtype: torch.dtype) -> dict[str, Kind]:
    """Dtype and shape of each weight by its name in transformers, in the order of `weights`."""
    try:
        names = exported_names(weights.kinds)
    except KeyError as error:
        raise UserError(
            f"method.name: {weights.plain.method.name} cannot be exported: its weight "
            f"{error.args[0]} has no place in a model of transformers"
        ) from None
    return {names[name]: (dtype, shape) for name, (_, shape) in weights.kinds.items()}


def cast(weights: FoldedWeights, dtype: torch.dtype) -> Iterator[Tensor]:
    """The weights in that dtype, with a bar on stderr."""
    total = sum(shape.numel() for _, shape in weights.kinds.values())
    done = 0
    with Bar("export", total, unit=" weights") as bar:
        for name, weight in weights:
            yield cast_one(name, weight, dtype)
            done += weight.numel()
            bar.show(done, name)


def cast_one(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = weight.to(dtype)
    if not bool(weight.isfinite().all()):
        raise UserError(
            f"run_dir: {name} holds numbers that are not finite: training has diverged; export an "
            "earlier checkpoint"
        )
    if not bool(narrow.isfinite().all()):
        raise UserError(
            f"dtype: {name} has {weight.abs().max():.3g}, and fp16 ends at "
            f"{torch.finfo(dtype).max:g}; use dtype=bf16 or fp32"
        )
    return narrow


def config_json(
    config: Config, dtype: torch.dtype, tokenizer: Tokenizer, modeling: Path | None
) -> dict[str, Any]:
    """In the words of transformers' LlamaConfig, and the method's own."""
    model, method = config.model, config.method
    kind = method.exported_type(model)
    assert kind is not None
    prefix = kind.capitalize()
    remote = {}
    if modeling is not None:
        remote["auto_map"] = {a: f"{modeling.stem}.{prefix}{end}" for a, end in CLASSES.items()}
    return {
        "architectures": [f"{prefix}ForCausalLM"],
        **remote,
        "model_type": kind,
        **method.exported(model),
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": config.train.sequence_length,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": None,  # else the embedding of it, which may be eos, gets no gradient
        "dtype": str(dtype).removeprefix("torch."),
    }


def modeling_file(config: Config) -> Path | None:
    """What the folder of a config's model carries for transformers; None: that has its own."""
    method = config.method
    if method.model_type is None:
        raise UserError(
            f"method.name: {method.name} cannot be exported: transformers has no model of it"
        )
    if method.modeling is None:
        return None
    spec = importlib.util.find_spec(method.modeling)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def load_tokenizer(given: Path | None, checkpoint: Path, config: Config) -> Tokenizer:
    """given: its file; None: the run's own, which must be the one that made its tokens."""
    fix = "give the tokenizer.json that made the run's tokens: tokenizer=FILE"
    known = None if given else read_state(checkpoint).get("tokenizer")
    path = given or run_of(checkpoint) / TOKENIZER
    return Tokenizer.of_model(path, config.model.vocab_size, fix, known)
