"""What a method is before torch: its options, their checks, and what its blocks cost."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from cola_train.config.groups import ModelConfig, RecomputeConfig, TrainConfig
from cola_train.engines.options import EngineOptions
from cola_train.methods import launches
from cola_train.methods.costs import BlockCost, CacheCost, Weight, key_value_cache
from cola_train.methods.recipe import Recipe, by_size
from cola_train.optim import OptimOptions
from cola_train.optim.costs import UpdateCost
from cola_train.parallel.topology import Topology
from cola_train.schedule import learning_rate


class Run(Protocol):
    """The parts of a `Config` that a method's checks may read."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def recompute(self) -> RecomputeConfig: ...
    @property
    def engine(self) -> EngineOptions: ...
    @property
    def optim(self) -> OptimOptions: ...
    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True)
class MethodOptions(ABC):
    """Which linears a block has, and what follows from that without building anything."""

    name: str

    implementation: ClassVar[str]  # "module:class" of a `methods.base.Method`
    policies: ClassVar[tuple[str, ...]] = ("none", "full")  # of recomputation, that it has
    fused_kernels: ClassVar[bool] = False  # whether Triton kernels exist for its layers
    needs_matrices: ClassVar[bool] = False  # its optimizer's update is not element by element
    warm_starts: ClassVar[tuple[str, ...]] = ()  # methods all of whose weights it has; `warm_start`
    model_type: ClassVar[str | None] = None  # of its models in config.json, if any say what it is
    # The same of models with model.qk_norm; None: the same type, where a field `qk_norm` says so.
    qk_norm_type: ClassVar[str | None] = None
    # The module with which transformers runs models of that type, where it has none of its own:
    # its classes are named by the type, LlamaForCausalLM. Exports carry its file.
    modeling: ClassVar[str | None] = None

    @property
    def warm_start(self) -> str | None:
        """A run or checkpoint of one of the methods `warm_starts`, with whose weights a new run
        begins; nothing else of it is used."""
        return None

    @classmethod
    def recipe(cls, size: str, steps: int) -> Recipe:
        """Published for a model of that size and a run of so many steps; here that of CoLA's
        official code (arXiv 2502.10940), which trains its full-rank baseline with the same."""
        return Recipe(
            lr=by_size((6e-3, 3e-3, 3e-3, 2e-3, 1e-3), size),
            warmup_steps=by_size((2000, 2000, 6000, 10_000, 15_000), size),
            weight_decay=0.01,
            clip=0.5,
        )

    @property
    def updates_in_backward(self) -> bool:
        """Whether each parameter is updated as soon as its gradient is there, which is then freed:
        see `methods/per_layer.py`."""
        return False

    def problems(self, run: Run, topology: Topology) -> Iterator[str]:
        """What is wrong with the options in such a run on such a cluster."""
        yield from ()

    @property
    def folded(self) -> "MethodOptions":
        """Of the plainest model that `Method.fold` makes weights for, as exports have it."""
        return self

    def exported_type(self, model: ModelConfig) -> str | None:
        """What config.json of an exported model says of its type; None: there is none."""
        return (self.qk_norm_type if model.qk_norm else None) or self.model_type

    def exported(self, model: ModelConfig) -> dict[str, Any]:
        """What config.json of an exported model of a `model_type` says beside that and the model's
        shape: what `of_exported` reads."""
        return {}

    @classmethod
    def of_exported(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The options' values for an exported model, by config.json's fields.

        Raises:
            ValueError: a field is missing, or says what the method has not.
        """
        return {}

    def label(self, model: ModelConfig) -> str:
        """What people call this variant of the method; empty if there is only one."""
        return ""

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        """What of the options decides which function the weights make: a checkpoint is resumed
        only where these are the same."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}

    @abstractmethod
    def block_cost(self, model: ModelConfig, length: int, policy: str, fused: bool) -> BlockCost:
        """Of one block, at sequences of `length` under a recompute policy; `fused`: on Triton
        kernels, where there are any."""

    def caches(self, model: ModelConfig) -> dict[str, CacheCost]:
        """By name, what generation may keep of a block's positions (inference/caches.py)."""
        return {"kv": key_value_cache(model)}

    def block_launches(self, model: ModelConfig, work: launches.Work) -> Iterator[launches.Launch]:
        """The kernels of one block, forward and backward, in any order. A method that joins its
        matmuls, or fuses what is between them, says so in its own."""
        cost = self.block_cost(model, work.length, work.policy, work.fused)
        yield from launches.of_weights(cost.weights, model, work)

    def optimizer_elements(
        self, model: ModelConfig, optim: OptimOptions, weight: Weight, shards: int = 1
    ) -> int:
        """Elements of optimizer state for a weight, as it is stored; of `shards` processes that cut
        it by rows, on the one that holds most."""
        if not weight.trainable:
            return 0
        rows, *others = weight.shape
        return optim.state_elements((-(-rows // shards), *others), weight.block_matrix)

    def update_cost(
        self, model: ModelConfig, optim: OptimOptions, weights: Sequence[Weight], shards: int = 1
    ) -> UpdateCost:
        """Of all weights, as they are stored; processes as for `optimizer_elements`."""
        matrices = [(w.shape[0], w.shape[1]) for w in weights if w.trainable and w.block_matrix]
        return optim.update_cost(matrices, shards)

    def learning_rate(self, run: Run, step: int) -> float:
        """The rate of step 1..train.steps."""
        return learning_rate(run.optim, step, run.train.steps)
