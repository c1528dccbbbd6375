"""What DeepSpeed's ZeRO does with a model's parameters, by its defaults and `engine.overrides`."""

from collections.abc import Sequence
from functools import cached_property
from math import prod

from cola_train.errors import UserError
from cola_train.planning.run import Job

# DeepSpeed 0.19's defaults (zero/config.py), in elements; a test holds them to the original.
DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}

STAGE0_BUCKET = 500_000_000  # elements; of engine.allreduce_no_retain, no option

Shapes = Sequence[tuple[int, ...]]


class Zero:
    """Buckets, small parameters that stay whole, blocks that stay gathered."""

    def __init__(self, job: Job) -> None:
        engine = job.config.engine
        self.job, self.stage = job, engine.zero_stage or 0
        group = (engine.overrides or {}).get("zero_optimization", {})
        if not isinstance(group, dict):
            raise UserError(f"engine.overrides: zero_optimization must be a group, got {group}")
        chosen = {}
        for key, default in DEFAULTS.items():
            value = group.get(key, default)
            if not isinstance(value, int | float):
                raise UserError(
                    f"engine.overrides: {key} must be a number to plan with, got {value}"
                )
            chosen[key] = int(value)
        self.bucket = chosen["reduce_bucket_size"]
        self.prefetched = chosen["stage3_prefetch_bucket_size"]
        self.threshold = chosen["stage3_param_persistence_threshold"]
        self.reuse_distance = chosen["stage3_max_reuse_distance"]

    @cached_property
    def all_shapes(self) -> Shapes:
        return [*self.job.root.shapes, *self.job.block.shapes * self.job.config.model.n_layers]

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.all_shapes))

    @property
    def aligned(self) -> int:
        """Stages 1 and 2: the flat weights' length, a multiple of two for each process."""
        unit = 2 * self.job.processes
        return -(-self.parameters // unit) * unit

    def padded(self, shapes: Shapes) -> int:
        """Stage 3 cuts each parameter into equal parts."""
        D = self.job.processes
        return sum(-(-prod(shape) // D) * D for shape in shapes)

    def persistent(self, shapes: Shapes, padded: bool = False) -> int:
        """Stage 3: elements of the small parameters, which stay gathered between steps."""
        small = [shape for shape in shapes if prod(shape) <= self.threshold]
        return self.padded(small) if padded else sum(map(prod, small))

    def stays_gathered(self, block: int) -> bool:
        """Stage 3: whether a block's weights stay from its forward to its backward pass: what is
        used until the backward pass begins is less than the reuse distance."""
        after = self.job.config.model.n_layers - 1 - block
        return after * self.job.block.elements + self._head_and_norm < self.reuse_distance

    @property
    def root_stays_gathered(self) -> tuple[bool, bool]:
        """Stage 3: the same of embedding and head. Blocks, which DeepSpeed gathers whole, do not
        count between the embedding's two uses."""
        return 2 * self._head_and_norm < self.reuse_distance, self.reuse_distance > 0

    @property
    def _head_and_norm(self) -> int:
        return sum(map(prod, self.job.root.shapes[1:]))
