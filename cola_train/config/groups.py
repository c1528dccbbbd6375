"""Groups of options that have one kind of member. Unions live with their owners (see `schema`)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cola_train.config.fields import (
    Among,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Range,
    Seconds,
    Workers,
)
from cola_train.config.widths import InnerWidth

VocabSize = Annotated[int, Range(1, 10**7)]
BatchSize = Annotated[int, Range(1, 10**7)]  # sequences
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # the linears of a block
Projection = Annotated[str, Among(dict.fromkeys(PROJECTIONS))]


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA decoder's shape; two hints for low-rank methods (arXiv 2502.10940's code)."""

    name: str  # what the run and its reports call it
    vocab_size: VocabSize  # at least the tokenizer's
    d_model: Annotated[int, Range(1, 10**6)]  # width of the residual stream
    d_ff: Annotated[int, Range(1, 10**7)]  # width inside the SwiGLU MLP; stored aligned
    n_layers: Annotated[int, Range(1, 10**4)]  # blocks
    n_heads: PositiveInt  # divides d_model
    rank_ratio: PositiveFraction  # r / d_model, unless the method's own option says otherwise
    activation: str  # where the paper puts SiLU in low-rank layers of this size
    norm_eps: PositiveFloat = 1e-6  # of RMSNorm
    embedding_std: PositiveFloat = 0.02  # with which the embedding begins
    rope_theta: PositiveFloat = 1e4  # base of the rotary embedding
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before they are rotated
    attention: Literal["sdpa", "flash"] = "sdpa"  # torch's own; flash: flash-attn, which needs CUDA

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def inner(self) -> InnerWidth:
        """d_ff, as weights and activations have it."""
        return InnerWidth(self.d_ff)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of the seven linears of one block, by name."""
        d, f = self.d_model, self.inner
        shapes = [(d, d)] * 4 + [(d, f)] * 2 + [(f, d)]
        return dict(zip(PROJECTIONS, shapes, strict=True))

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """The same without names."""
        return list(self.linears.values())


@dataclass(frozen=True)
class RecomputeConfig:
    """Which activations are recomputed in the backward pass."""

    name: str  # one of the method's policies


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how long, how large a batch, in which precision."""

    steps: Annotated[int, Range(1, 99_999_999)] = 300  # optimizer steps, which the schedule spans
    stop_after: PositiveInt | None = None  # end early; the schedule still spans `steps`
    sequence_length: Annotated[int, Range(2, 10**8)] = 256  # tokens of a sequence
    batch_size: BatchSize | None = None  # global batch in sequences; null: 32, or batch_tokens
    batch_tokens: PositiveInt | None = None  # global batch in tokens, in place of batch_size
    micro_batch_size: BatchSize | None = None  # sequences at a time; null: a process's share
    # auto: bf16 where the hardware has it; fp8: bf16 with the blocks' matmuls in fp8, but for those
    # of weight gradients
    precision: Literal["auto", "bf16", "fp32", "fp8"] = "auto"
    compile: bool | None = None  # torch.compile each block; null: on GPUs, but not with ZeRO-3
    # replay each step as one CUDA graph, on one GPU
    cuda_graph: bool = False
    deterministic: bool = False  # the same losses again, bit for bit, on the same machine
    threads: Workers | None = None  # CPU threads of each process; null: its share of the cores
    # c: what is minimised is the loss + c logsumexp(logits)^2, 1e-4 where it is used; 0: none
    z_loss: NaturalFloat = 0.0
    non_finite: Literal["skip", "stop"] = "skip"  # what to do with a step whose loss is no number
    max_skipped_in_a_row: PositiveInt = 10  # steps; with more the run has failed
    spike_deviations: PositiveFloat | None = None  # a loss so far above is skipped
    rollback_after: PositiveInt | None = None  # skipped steps in a row; then back to a checkpoint
    hang_seconds: Seconds | None = 300.0  # without progress; then the run ends with 75
    log_every: PositiveInt = 1  # steps between lines of metrics.jsonl

    def __post_init__(self) -> None:
        if self.batch_size is None and self.batch_tokens is None:
            # not its default: that would stand beside a batch in tokens
            object.__setattr__(self, "batch_size", 32)


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and how many checkpoints stay."""

    every: NaturalInt = 100  # steps; 0: at the end only
    keep: PositiveInt = 2  # the newest ones
    keep_best: bool = True  # and the one of the lowest validation loss
    asynchronous: bool = True  # written while training goes on


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases, TensorBoard, and the console."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online when logged in
    project: str = "cola_train"  # in W&B
    entity: str | None = None  # W&B's user or team; null: its default
    group: str | None = None  # of runs in W&B
    tags: list[str] = field(default_factory=list)  # in W&B
    tensorboard: bool = False  # event files in run_dir/tensorboard; needs TensorBoard
    progress: bool = True  # a bar on the console
