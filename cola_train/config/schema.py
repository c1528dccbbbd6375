"""Every option of a run as a dataclass: Hydra composes, `checks.load` checks, DictConfig ends.

All problems are found at once, each with its field, its value and what would be right, before a
process group, a GPU or a download is touched (docs/architecture.md).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cola_train import distributed
from cola_train.config.fields import (
    Fraction,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Range,
)


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

    The other engine's options are null (`checks.engine_problems`).
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
