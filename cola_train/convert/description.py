"""What a folder's config.json says of its model, as our options. Imports no torch.

Of models with LLaMA's equations, in the words of transformers' LlamaConfig, which Qwen3's shares.
What a method has beside them, its options read and write (`MethodOptions.of_exported`, `exported`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cola_train.config.fields import build
from cola_train.config.groups import ModelConfig, RecomputeConfig, TrainConfig
from cola_train.config.schema import Config
from cola_train.data.options import DataOptions
from cola_train.engines import ENGINES
from cola_train.errors import UserError
from cola_train.files import read_json
from cola_train.methods import METHODS, MethodOptions
from cola_train.optim import OPTIMIZERS

CONFIG = "config.json"

# Methods by the model_type of their models, the first of several.
METHOD_OF = {
    kind: name
    for name, of in reversed(METHODS.items())
    for kind in (of.model_type, of.qk_norm_type)
    if kind is not None
}

# LlamaConfig's name: ours, of what a config.json must say.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}
NORM_EPS, ROPE_THETA, LENGTH = 1e-6, 1e4, 2048  # LlamaConfig's, where a config.json says none
ANY_RATIO = 0.25  # model.rank_ratio, a hint, where there is no rank


@dataclass(frozen=True)
class Description:
    """length: positions that the model was made for. tied: its head is its embedding."""

    model: ModelConfig
    method: MethodOptions
    length: int
    tied: bool

    def config(self) -> Config:
        """For building the model, in fp32; of the rest, what comes first."""
        engine, optim = next(iter(ENGINES.items())), next(iter(OPTIMIZERS.items()))
        return Config(
            run_name=self.model.name,
            run_dir="",
            model=self.model,
            method=self.method,
            engine=engine[1](engine[0]),
            data=DataOptions(""),
            optim=optim[1](optim[0]),
            recompute=RecomputeConfig(self.method.policies[0]),
            train=TrainConfig(sequence_length=self.length, precision="fp32", compile=False),
        )


def describe(folder: Path) -> Description:
    """Read `folder`'s config.json.

    Raises:
        UserError: it is not there, is broken, or is of a model that this one cannot be.
    """
    path = folder / CONFIG
    try:
        fields = read_json(path)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {CONFIG} there, so it is no exported model; give a folder with "
            f"{CONFIG} and weights (cola-export makes one of a run)"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: broken ({error}); copy it anew") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no fields; copy it anew")
    if problems := list(_problems(fields)):
        raise UserError(*(f"{path}: {problem}" for problem in problems))
    return _described(fields, path)


def _problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """What the model has that ours cannot have."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in METHOD_OF:
        yield f"model_type: {kind!r} is another model; known: {', '.join(METHOD_OF)}"
        return
    wrong = [name for name in SIZES if not _is_size(fields.get(name))]
    if wrong:
        yield f"{', '.join(wrong)}: must be whole numbers of at least 1"
        return
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads or width // heads % 2:
        yield f"num_attention_heads: {heads} heads of {width} / {heads} columns; must be even"
        return
    groups = fields.get("num_key_value_heads")
    if groups not in (None, heads):
        yield (
            f"num_key_value_heads: {groups} of {heads} heads: grouped-query attention, which this "
            "model has not"
        )
    if fields.get("head_dim") not in (None, width // heads):
        yield f"head_dim: {fields['head_dim']}, and this model's is {width} / {heads}"
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        yield f"hidden_act: {fields['hidden_act']!r}, and this model has silu alone"
    sliding = fields.get("use_sliding_window", True)  # else a window that is said has no effect
    for name in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config"):
        if fields.get(name) and (sliding or name != "sliding_window"):
            yield f"{name}: {fields[name]!r}, which this model has not"
    for name, value in _rotary(fields).items():
        if name != "rope_theta" and [name, value] not in ORDINARY_ROTARY:
            yield f"{name}: {value!r}: positions are scaled, and this model's are not"


ORDINARY_ROTARY = [["rope_type", "default"], ["type", "default"], ["partial_rotary_factor", 1.0]]


def _rotary(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions: rope_theta and rope_scaling, or, since transformers 5,
    rope_parameters."""
    names = ("rope_theta", "partial_rotary_factor")
    found = {name: fields[name] for name in names if name in fields}
    for group in ("rope_scaling", "rope_parameters"):
        said = fields.get(group) or {}
        found |= said if isinstance(said, dict) else {group: said}
    return {name: value for name, value in found.items() if value is not None}


def _normed(fields: Mapping[str, Any]) -> Any:
    """What is said of `model.qk_norm`, by the type or by a field."""
    kind = METHODS[METHOD_OF[fields["model_type"]]].qk_norm_type
    return fields.get("qk_norm", False) if kind is None else fields["model_type"] == kind


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _described(fields: Mapping[str, Any], path: Path) -> Description:
    problems: list[str] = []
    name, width = METHOD_OF[fields["model_type"]], fields["hidden_size"]
    try:
        of_method = METHODS[name].of_exported(fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    values: dict[str, Any] = {
        "name": path.absolute().parent.name,
        "norm_eps": fields.get("rms_norm_eps", NORM_EPS),
        "rope_theta": _rotary(fields).get("rope_theta", ROPE_THETA),
        "qk_norm": _normed(fields),
        # hints for methods that have them
        "rank_ratio": of_method["rank"] / width if of_method.get("rank") else ANY_RATIO,
        "activation": of_method.get("activation", ""),
    }
    values |= {ours: fields[theirs] for theirs, ours in SIZES.items()}
    model = build(ModelConfig, values, "model.", problems)
    method = build(METHODS[name], {"name": name, **of_method}, "method.", problems)
    length = fields.get("max_position_embeddings", LENGTH)
    if not _is_size(length):
        problems.append(f"max_position_embeddings: must be a whole number, got {length!r}")
    if problems:
        raise UserError(*(f"{path}: {problem}" for problem in problems))
    tied = bool(fields.get("tie_word_embeddings", False))
    return Description(model, method, max(length, 2), tied)
