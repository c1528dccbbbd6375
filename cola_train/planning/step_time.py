"""Seconds of one optimizer step by part: its kernels, and the host that launches them.

The kernels of a block are its method's (`MethodOptions.block_launches`), those of the head and the
loss are model/loss.py's, copies of weights and gradients the engine's. Nothing here is measured:
planning/constants.py says where the constants come from.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from cola_train.config.groups import ModelConfig
from cola_train.methods import MethodOptions
from cola_train.methods.launches import (
    PARTS,
    FusedGemm,
    Gemm,
    Launch,
    Pass,
    Work,
    input_gradient,
    linear,
    weight_gradient,
)
from cola_train.planning.launch_time import US, Chip
from cola_train.planning.memory import CHUNK_BYTES
from cola_train.planning.run import FP32, Run

UPDATE = PARTS[-1]


@dataclass(frozen=True)
class BlockTime:
    """Of one block and micro-batch. parts: seconds of its kernels; launches: how many they are;
    host: seconds of the process that launches them."""

    parts: dict[str, float]
    launches: int
    host: float


@lru_cache(maxsize=10_000)
def block_time(method: MethodOptions, model: ModelConfig, work: Work, chip: Chip) -> BlockTime:
    parts: dict[str, float] = defaultdict(float)
    launches, host = 0, 0.0
    constants = chip.constants
    usual = constants.compiled_launch_us if work.compiled else constants.eager_launch_us
    for launch in method.block_launches(model, work):
        parts[launch.part] += chip.seconds(launch)
        launches += 1
        host += constants.fused_launch_us if isinstance(launch, FusedGemm) else usual
    return BlockTime(dict(parts), launches, host * US)


def root_launches(run: Run) -> Iterator[tuple[int, Launch]]:
    """Embedding, last norm, head and loss of a micro-batch, forward and backward: how often each
    kernel runs."""
    V, d, n = run.config.model.vocab_size, run.config.model.d_model, run.tokens
    yield 1, Pass(2 * n * d, "norms")
    yield 1, Pass(4 * n * d, "norms")
    yield 2, Pass(2 * n * d)  # the embedding's rows, and their gradients
    yield 1, Pass(2 * V * d)
    rows = min(n, max(1, CHUNK_BYTES // (run.element * V)))
    chunks = -(-n // rows)
    fp32 = FP32 // run.element  # elements of the compute dtype in one
    wide = fp32 if chunks > 1 else 1  # what dW is summed in
    yield chunks, replace(linear(rows, d, V), fp8=False, part="head GEMMs")
    yield chunks, replace(input_gradient(rows, d, V), fp8=False, part="head GEMMs")
    yield chunks, replace(weight_gradient(rows, d, V), more=wide * V * d, part="head GEMMs")
    if run.triton:  # logits become their gradient in one kernel, which reads them twice
        yield chunks, Pass(3 * rows * V, "loss")
    else:  # softmax to fp32, the largest of both, and the gradient
        for elements in (1 + fp32, 1, fp32, 1 + fp32):
            yield chunks, Pass(elements * rows * V, "loss")
    yield 1, Pass(2 * n * d, "loss")  # both gradients times the loss's own
    yield 1, Pass((1 + wide) * V * d, "loss")


def step_parts(run: Run, chip: Chip) -> tuple[dict[str, float], float]:
    """Seconds of a step's kernels by part, and of the host before the update is launched."""
    config, constants = run.config, chip.constants
    L = config.model.n_layers
    work = Work(
        run.tokens,
        config.train.sequence_length,
        config.recompute.name,
        run.fused,
        run.compiled,
        config.model.qk_norm,
    )
    block = block_time(config.method, config.model, work, chip)
    parts = defaultdict(float, {part: L * seconds for part, seconds in block.parts.items()})
    hooks = constants.sharding_block_us * US if run.planner.hooks(run) else 0.0
    host = L * (block.host + hooks)
    for times, launch in root_launches(run):
        parts[launch.part] += times * chip.seconds(launch)
        host += times * constants.eager_launch_us * US
    for part in parts:
        parts[part] *= run.accumulation
    parts["weight copies"] += chip.passed(run.planner.copied_bytes(run))
    host *= run.accumulation
    device, host_update = update_seconds(run, chip)
    if config.train.cuda_graph:  # one launch, the update's kernels among what it launches
        host, host_update = constants.eager_launch_us * US, 0.0
    parts[UPDATE] += max(device, host_update)
    return {part: parts[part] for part in PARTS}, host


def update_seconds(run: Run, chip: Chip) -> tuple[float, float]:
    """Of norm, clip and update: the kernels, and the host that launches them."""
    cost, constants = run.update_cost, chip.constants
    device = chip.passed(update_bytes(run) + cost.passed) + cost.launches * constants.launch_us * US
    multiplying, launches = replace(chip, element=cost.element), cost.launches
    for product, times in cost.products.items():
        rows, columns, depth, adds = product
        gemm = Gemm(rows, columns, depth, (depth, columns, columns), more=rows * columns * adds)
        device += times * multiplying.seconds(gemm)
        launches += times
    return device, (constants.optimizer_us + launches * constants.update_launch_us) * US


def update_bytes(run: Run) -> float:
    """What norm, clip and AdamW read and write: gradients, weights and state. torch's fused AdamW
    clips as it reads and writes gradients back; an optimizer of matrices gets them clipped in a
    pass before, and `update_cost` has what it then does with those of the blocks."""
    config, clips = run.config, run.config.optim.clip is not None
    whole = config.method.needs_matrices or config.optim.needs_matrices
    updated = [w for w in run.weights if w.trainable and not (whole and w.block_matrix)]
    gradients = (1 + clips * (2 if whole else 1)) * run.trainable
    adamw = sum(3 * weight.elements + 2 * run.optimizer_elements(weight) for weight in updated)
    return FP32 * (gradients + adamw) / run.planner.copy_size(run)
