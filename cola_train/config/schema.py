"""Every option of a run: Hydra composes, `checks.load` makes a `Config`, DictConfig ends.

A union's options live with their owner (methods/, engines/, data/, optim/), whose registry is the
list of names here. All problems are found at once, each with its field, its value and what would
be right, before a process group, a GPU or a download is touched (docs/architecture.md).
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cola_train.config.fields import OneOf, PathText, Range
from cola_train.config.groups import (
    CheckpointConfig,
    ModelConfig,
    RecomputeConfig,
    TrackingConfig,
    TrainConfig,
)
from cola_train.data.options import SOURCES, DataOptions
from cola_train.engines import ENGINES, EngineOptions
from cola_train.evaluation.options import EvaluationConfig
from cola_train.health.options import HealthConfig
from cola_train.methods import METHODS, MethodOptions
from cola_train.optim import OPTIMIZERS, OptimOptions


@dataclass(frozen=True)
class Config:
    """The run itself."""

    run_name: str  # also the name of its folder, and in W&B
    run_dir: PathText  # where everything of the run is kept
    model: ModelConfig
    method: Annotated[MethodOptions, OneOf(METHODS)]
    engine: Annotated[EngineOptions, OneOf(ENGINES)]
    data: Annotated[DataOptions, OneOf(SOURCES, tag="source")]
    optim: Annotated[OptimOptions, OneOf(OPTIMIZERS)]
    recompute: RecomputeConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0  # of initial weights and the order of data
    resume: PathText = "auto"  # auto | never | a checkpoint or run, where a new run begins
    kernels: Literal["auto", "torch", "triton"] = "auto"  # auto: what was measured faster

    @property
    def batch_size(self) -> int:
        """Global batch in sequences."""
        if self.train.batch_tokens is not None:
            return self.train.batch_tokens // self.train.sequence_length
        assert self.train.batch_size is not None
        return self.train.batch_size

    def micro_batch_size(self, processes: int) -> int:
        """Sequences that one of `processes` with different batches runs at a time."""
        return self.train.micro_batch_size or self.batch_size // processes

    def accumulation(self, processes: int) -> int:
        """Micro-batches of one of `processes` in one optimizer step."""
        return self.batch_size // (processes * self.micro_batch_size(processes))
