"""Every option of a run as a checked dataclass: Hydra composes, `load` checks, DictConfig ends.

All problems are found at once, each with its field, its value and what would be right, before a
process group, a GPU or a download is touched (docs/architecture.md).
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from cola_train import distributed
from cola_train.errors import UserError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive unless `above` (exclusive lower bound) is given."""

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.above is None or value > self.above)

    def __str__(self) -> str:
        if self.above is not None:
            low = f"more than {self.above:g}"
        else:
            low = f"at least {self.low:g}" if self.low > -math.inf else ""
        high = f"at most {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


INVALID: Any = object()  # stands for a field whose value was refused, while others are checked

PositiveInt = Annotated[int, Range(low=1)]
NaturalInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(above=0.0)]
Fraction = Annotated[float, Range(low=0.0, high=1.0)]


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA decoder's shape. The two `cola_` fields are the paper's choice for this size."""

    name: str
    vocab_size: PositiveInt
    d_model: PositiveInt
    d_ff: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    attention: Literal["sdpa", "flash"]
    cola_rank_ratio: PositiveFloat  # r / d_model; method.rank_ratio follows it
    cola_activation: Literal["low_rank", "both", "full_rank"]

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class MethodConfig:
    """What is pre-trained: full-rank linears, or CoLA's auto-encoders."""

    name: Literal["full", "cola"]
    rank_ratio: PositiveFloat | None
    rank: PositiveInt | None  # wins over rank_ratio
    activation: Literal["low_rank", "both", "full_rank"] | None


@dataclass(frozen=True)
class RecomputeConfig:
    """Which activations are recomputed in the backward pass."""

    name: Literal["none", "full", "cola_m", "light"]


@dataclass(frozen=True)
class EngineConfig:
    """How parameters, gradients and optimizer state are spread over processes.

    The other engine's options are null (`config_checks.engine_problems`).
    """

    name: Literal["fsdp", "deepspeed"]
    timeout_seconds: PositiveFloat
    # fsdp
    sharding: Literal["full", "hybrid", "replicate"] | None
    shard_size: PositiveInt | None  # hybrid: processes in one shard group; null: those of one node
    reshard_after_forward: bool | None
    sync_every_micro_batch: bool | None
    # deepspeed
    zero_stage: Annotated[int, Range(low=0, high=3)] | None
    offload_optimizer: Literal["none", "cpu", "nvme"] | None
    offload_parameters: Literal["none", "cpu", "nvme"] | None
    nvme_path: str | None
    overrides: dict[str, Any] | None  # merged into DeepSpeed's JSON


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, how it is tokenised and how it is cut into sequences."""

    source: Literal["stdlib", "text", "c4", "tokens"]
    path: str | None
    files: list[str]
    validation_files: list[str]
    validation_fraction: Fraction
    text_field: str
    max_files: PositiveInt | None
    tokenizer: str
    vocab_size: PositiveInt  # of a tokenizer trained here
    cache_dir: str
    packing: Literal["packed", "per_document"]
    document_mask: bool | None  # null: where the attention backend can do it at speed
    workers: PositiveInt | None
    verify: bool  # compare the shards' checksums at start, the processes sharing the work


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then a cosine to `final_lr_ratio` of the peak."""

    name: Literal["adamw"]
    lr: PositiveFloat
    betas: list[Fraction]
    eps: PositiveFloat
    weight_decay: Annotated[float, Range(low=0.0)]
    warmup_steps: NaturalInt | None  # null: a twentieth of train.steps
    final_lr_ratio: Fraction
    clip: PositiveFloat | None


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how long, how large a batch, in which precision."""

    steps: PositiveInt
    stop_after: PositiveInt | None  # end early at this step; the schedule still spans `steps`
    sequence_length: Annotated[int, Range(low=2)]
    batch_size: PositiveInt | None  # global batch in sequences ...
    batch_tokens: PositiveInt | None  # ... or in tokens; exactly one of the two
    micro_batch_size: PositiveInt | None  # sequences at a time; null: a process's whole share
    precision: Literal["auto", "bf16", "fp32"]
    compile: bool
    deterministic: bool
    threads: PositiveInt | None  # CPU threads of each process; null: cores / processes of the node
    non_finite: Literal["skip", "stop"]
    max_skipped_in_a_row: PositiveInt
    spike_deviations: PositiveFloat | None  # a loss so far above the mean is skipped
    rollback_after: PositiveInt | None  # skipped steps in a row; then back to the last checkpoint
    hang_seconds: PositiveFloat | None  # without progress: the watchdog ends the run with 75
    log_every: PositiveInt


@dataclass(frozen=True)
class EvaluationConfig:
    every: NaturalInt  # steps; 0: at the end only
    tokens: PositiveInt | None  # null: the whole validation split
    batch_size: PositiveInt  # sequences of one process at a time
    sample_prompt: str
    sample_tokens: NaturalInt


@dataclass(frozen=True)
class CheckpointConfig:
    every: NaturalInt  # steps; 0: at the end only
    keep: PositiveInt
    keep_best: bool
    asynchronous: bool


@dataclass(frozen=True)
class TrackingConfig:
    wandb: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    progress: bool


@dataclass(frozen=True)
class Config:
    run_name: str
    run_dir: str
    seed: NaturalInt
    resume: str  # auto | never | the path of a checkpoint or of a run's folder
    kernels: Literal["auto", "torch", "triton"]  # of the low-rank layers; auto: Triton on CUDA
    model: ModelConfig
    method: MethodConfig
    recompute: RecomputeConfig
    engine: EngineConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig

    @property
    def batch_size(self) -> int:
        """Global batch in sequences."""
        if self.train.batch_size is not None:
            return self.train.batch_size
        assert self.train.batch_tokens is not None
        return self.train.batch_tokens // self.train.sequence_length

    @property
    def micro_batch_size(self) -> int:
        """Sequences that one process runs at a time."""
        return self.train.micro_batch_size or self.batch_size // distributed.world_size()

    @property
    def rank(self) -> int:
        """Bottleneck width r of the CoLA auto-encoders."""
        if self.method.rank is not None:
            return self.method.rank
        assert self.method.rank_ratio is not None
        return round(self.method.rank_ratio * self.model.d_model)


def load(
    values: Mapping[str, Any],
    also: list[str] | None = None,
    checks: Iterable[Callable[["Config"], Iterable[str]]] | None = None,
) -> Config:
    """Turn plain nested values into a checked `Config`.

    `also` are problems found before (unknown overrides, say), reported together with these.
    `checks`: in place of all of config_checks.

    Raises:
        UserError: with one line for each problem found.
    """
    from cola_train.config_checks import CHECKS  # which imports Config from here

    problems: list[str] = []
    config = build(Config, values, "", problems)
    fields_are_right = not problems
    for check in CHECKS if checks is None else checks:
        try:
            problems += check(config)
        except (TypeError, AttributeError):  # it needs a field that is INVALID
            if fields_are_right:
                raise
    problems = [*(also or []), *problems]
    if problems:
        raise UserError(*problems)
    return config


def field_names(cls: Any = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of every option, groups included."""
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type, f"{prefix}{field.name}.")


def unknown(name: str, known: list[str], what: str) -> str:
    """The message for a name that is not among `known`, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near and "." not in name:  # `lr` for `optim.lr`
        near = [k for k in known if k.endswith(f".{name}")][:1]
    hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
    return f"{what} `{name}` does not exist{hint}"


def build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """A dataclass of type `cls` from a mapping; INVALID, and a line in `problems`, for each field
    that cannot be."""
    if not isinstance(values, Mapping):
        problems.append(f"{path or 'config'}: a group of options is expected, got {values!r}")
        return INVALID
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            problems.append(unknown(f"{path}{key}", [path + name for name in names], "option"))
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = path + field.name
        if values.get(field.name, "???") == "???":
            problems.append(f"{name}: missing; give it a value")
            arguments[field.name] = INVALID
        elif dataclasses.is_dataclass(field.type):
            arguments[field.name] = build(
                typing.cast(type, field.type), values[field.name], f"{name}.", problems
            )
        else:
            try:
                arguments[field.name] = _convert(values[field.name], field.type)
            except ValueError as error:
                problems.append(f"{name}: {error}, got {values[field.name]!r}")
                arguments[field.name] = INVALID
    return cls(**arguments)


def _convert(value: Any, kind: Any) -> Any:
    """`value` as type `kind`; a ValueError says what would be right."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, bounds = get_args(kind)
        number = _convert(value, base)
        if not bounds.allows(number):
            raise ValueError(f"must be {bounds}")
        return number
    if origin is types.UnionType or origin is typing.Union:
        choices = [k for k in get_args(kind) if k is not types.NoneType]
        return None if value is None else _convert(value, choices[0])
    if origin is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError("must be a list, like [a,b]")
        return [_convert(item, get_args(kind)[0]) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError("must be a group, like {a:{b:1}}")
        return dict(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    raise ValueError(f"must be {words[kind]}")
