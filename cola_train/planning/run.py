"""A config on a cluster: what the formulas of memory, traffic and time start from."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

from cola_train import costs
from cola_train.config.schema import Config
from cola_train.gpus import Gpu
from cola_train.methods.costs import BlockCost, Weight
from cola_train.optim.costs import UpdateCost
from cola_train.parallel.topology import Topology

FP32 = 4  # bytes


@dataclass(frozen=True)
class Run:
    """`config` on the processes of `topology`.

    on_cpu: as the tests run it, with gloo; else on NVIDIA GPUs with NCCL, of the kind `gpu`.
    """

    config: Config
    topology: Topology
    on_cpu: bool = False
    gpu: Gpu | None = None

    @property
    def processes(self) -> int:
        return self.topology.world

    @property
    def element(self) -> int:
        """Bytes of the compute dtype."""
        return FP32 if self.config.train.precision == "fp32" else 2

    @property
    def fused(self) -> bool:
        """Whether the method's layers run on Triton's kernels."""
        return self.config.method.fused_kernels and self.triton

    @property
    def triton(self) -> bool:
        """Whether anything does: the loss, whatever the method."""
        if self.config.train.precision == "fp8":
            return False
        if self.config.kernels != "auto":
            return self.config.kernels == "triton"
        return self.gpu is not None and self.gpu.fused_kernels

    @property
    def compiled(self) -> bool:
        """Whether blocks go through torch.compile; see `hardware.compiled_on`."""
        compiled = self.config.train.compile
        by_default = not self.on_cpu and self.config.engine.compiles
        return by_default if compiled is None else compiled

    def optimizer_elements(self, weight: Weight, shards: int = 1) -> int:
        """See `MethodOptions.optimizer_elements`."""
        config = self.config
        return config.method.optimizer_elements(config.model, config.optim, weight, shards)

    @cached_property
    def update_cost(self) -> UpdateCost:
        """See `MethodOptions.update_cost`."""
        config, shards = self.config, self.planner.copy_size(self)
        return config.method.update_cost(config.model, config.optim, self.weights, shards)

    @property
    def trainable(self) -> int:
        """Elements of the weights that are trained."""
        return sum(weight.elements for weight in self.weights if weight.trainable)

    @property
    def micro_batch_size(self) -> int:
        """Sequences that one process runs at a time."""
        return self.config.micro_batch_size(self.topology.data)

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in one optimizer step."""
        return self.config.accumulation(self.topology.data)

    @property
    def tokens(self) -> int:
        """Positions of one micro-batch."""
        return self.micro_batch_size * self.config.train.sequence_length

    @cached_property
    def cost(self) -> BlockCost:
        """Of one block, its weights as they are stored."""
        cost = costs.block_cost(self.config, self.fused)
        return replace(cost, weights=tuple(weight.stored for weight in cost.weights))

    @property
    def kept_bytes(self) -> int:
        """What one block keeps of a micro-batch for its backward pass."""
        return self.tokens * self.cost.saved_bytes(self.element)

    @property
    def workspace_bytes(self) -> int:
        """Most that one block's backward pass holds beside what it kept."""
        return self.element * (self.tokens * self.cost.workspace + self.cost.pass_workspace)

    @property
    def buffer_bytes(self) -> int:
        """Of all blocks' buffers."""
        return self.config.model.n_layers * self.cost.buffer_bytes

    @cached_property
    def root(self) -> tuple[Weight, ...]:
        """Parameters outside of the blocks."""
        return costs.root_weights(self.config)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every parameter, as it is stored."""
        return self.root + self.cost.weights * self.config.model.n_layers

    @property
    def stored(self) -> int:
        """Elements of all weights with their zeros; `costs.parameters` counts without."""
        return sum(weight.elements for weight in self.weights)

    @property
    def planner(self) -> Any:
        """The module of planning/ that knows the run's engine; see `planning.memory`."""
        return import_module(self.config.engine.planner)

    def with_config(self, **groups: Any) -> "Run":
        """The same with other groups of options."""
        return replace(self, config=replace(self.config, **groups))

    def with_micro_batch(self, size: int, accumulation: int) -> "Run":
        train = replace(
            self.config.train,
            micro_batch_size=size,
            batch_size=size * accumulation * self.topology.data,
            batch_tokens=None,
        )
        return self.with_config(train=train)
