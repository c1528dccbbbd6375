"""What DeepSpeed's ZeRO stages hold and send, by DeepSpeed 0.19.8's defaults and
`engine.overrides`: flat buffers of all parameters, reduced bucket by bucket."""

from collections.abc import Iterator, Sequence
from functools import cached_property

from cola_train.engines.deepspeed.options import DeepSpeedOptions
from cola_train.engines.options import EngineOptions
from cola_train.errors import UserError
from cola_train.methods.costs import Weight
from cola_train.planning.memory import Moment, head_moments, moment
from cola_train.planning.run import FP32, Run
from cola_train.planning.traffic import Collective

# DeepSpeed 0.19's defaults (zero/config.py), in elements; a test holds them to the original.
DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}

STAGE0_BUCKET = 500_000_000  # elements; of engine.allreduce_no_retain, no option


def options(run: Run) -> DeepSpeedOptions:
    assert isinstance(run.config.engine, DeepSpeedOptions)
    return run.config.engine


def copy_size(run: Run) -> int:
    """Processes that share one copy of the optimizer's state."""
    return run.processes if options(run).zero_stage else 1


def describe(run: Run) -> str:
    """The engine and its stage, for people."""
    return f"DeepSpeed ZeRO {options(run).zero_stage}"


def offloads(run: Run) -> bool:
    """Whether state is held outside of the GPU."""
    engine = options(run)
    return (engine.offload_optimizer, engine.offload_parameters) != ("none", "none")


def hooks(run: Run) -> bool:
    """Whether something is called around each block, or each gradient."""
    return True


def copied_bytes(run: Run) -> int:
    """Read and written by a step's copies of weights and gradients on one process: each gradient
    to the flat buffer as fp32, scaled there and added to those before; the updated part of the
    weights back to the compute dtype. Not measured."""
    e, P, times = run.element, run.trainable, run.accumulation
    scaled, added = 2 * FP32 * P, 3 * FP32 * P
    reduced = times * ((e + FP32) * P + scaled) + (times - 1) * added
    return reduced + (e + FP32) * P // copy_size(run)


class Zero:
    """Buckets, small parameters that stay whole, blocks that stay gathered."""

    def __init__(self, run: Run) -> None:
        engine = options(run)
        self.run, self.stage = run, engine.zero_stage
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
    def trainable(self) -> list[Weight]:
        """What is flattened, reduced and updated; frozen weights are left out of every group."""
        return [weight for weight in self.run.weights if weight.trainable]

    @property
    def parameters(self) -> int:
        """Elements of the trainable weights."""
        return sum(weight.elements for weight in self.trainable)

    @property
    def frozen(self) -> int:
        """Elements of the frozen ones."""
        return self.run.stored - self.parameters

    @property
    def block(self) -> int:
        """Elements of one block."""
        return sum(weight.elements for weight in self.run.cost.weights)

    @property
    def aligned(self) -> int:
        """Stages 1 and 2: the flat weights' length, a multiple of two for each process."""
        unit = 2 * self.run.processes
        return -(-self.parameters // unit) * unit

    def padded(self, weights: Sequence[Weight]) -> int:
        """Stage 3 cuts each parameter into equal parts."""
        D = self.run.processes
        return sum(-(-weight.elements // D) * D for weight in weights)

    def persistent(self, weights: Sequence[Weight], padded: bool = False) -> int:
        """Stage 3: elements of the small parameters, which stay gathered between steps."""
        small = [weight for weight in weights if weight.elements <= self.threshold]
        return self.padded(small) if padded else sum(weight.elements for weight in small)

    def stays_gathered(self, block: int) -> bool:
        """Stage 3: whether a block's weights stay from its forward to its backward pass: what is
        used until the backward pass begins is less than the reuse distance."""
        after = self.run.config.model.n_layers - 1 - block
        return after * self.block + self._head_and_norm < self.reuse_distance

    @property
    def root_stays_gathered(self) -> tuple[bool, bool]:
        """Stage 3: the same of embedding and head. Blocks, which DeepSpeed gathers whole, do not
        count between the embedding's two uses."""
        return 2 * self._head_and_norm < self.reuse_distance, self.reuse_distance > 0

    @property
    def _head_and_norm(self) -> int:
        return sum(weight.elements for weight in self.run.root[1:])


def weight_bytes(run: Run, zero: Zero, shard: int) -> int:
    """Of weights and buffers between steps: fp32 masters beside what the model computes with.

    shard: elements of the trained weights that a process updates. Offloaded, they are in the host's
    memory.
    """
    engine, e, frozen_shard = options(run), run.element, -(-zero.frozen // run.processes)
    mixed, whole = e != FP32, zero.stage < 3
    held = run.buffer_bytes
    if engine.offload_optimizer == "none" and (mixed or zero.stage):
        held += FP32 * shard
    if engine.offload_parameters == "none":
        held += e * (zero.parameters if whole else shard)
    held += e * (zero.frozen if whole else frozen_shard)
    if mixed or not whole:
        held += FP32 * frozen_shard
    if not whole:
        held += e * zero.persistent(run.weights)
    return held


def moments(run: Run) -> Iterator[Moment]:
    """Every moment of a step that could be its peak.

    bf16 gradients become fp32 before they are reduced; stage 1 keeps the fp32 gradients of all
    parameters from one step to the next, stage 3 its shard of them and the bucket.
    """
    engine, zero = options(run), Zero(run)
    stage, L, e = zero.stage, run.config.model.n_layers, run.element
    P, D = zero.parameters, run.processes
    trained_block = sum(w.elements for w in run.cost.weights if w.trainable)
    embedding = run.root[0].elements
    shard = -(-P // D) if stage else P
    mixed = e != FP32
    # Offloaded, state is in the host's memory, or on a disk; not measured.
    state_here = engine.offload_optimizer == "none"
    of_state = run.weights if stage == 0 else [Weight((shard,))]
    state = FP32 * sum(map(run.optimizer_elements, of_state))
    fixed = {"weights": weight_bytes(run, zero, shard), "optimizer": state if state_here else 0}
    between = {0: 0, 1: FP32 * P if mixed else 0, 2: 0, 3: FP32 * shard if state_here else 0}[stage]
    # a GPU's buffer takes what is asked for, a CPU's what is written to it
    filled = min(zero.bucket, P) if run.on_cpu else zero.bucket
    buffer = {0: 0, 1: 0, 2: e * filled, 3: FP32 * filled}[stage]
    # a bucket, or a gradient too large for it, on its way: as fp32, and gloo's copy of it
    # (stage 0's is of fixed size, and is put together in the model's dtype first)
    moved = min(STAGE0_BUCKET if stage == 0 else max(zero.bucket, embedding), P)
    copies = 2 if stage == 3 and run.on_cpu and D > 1 else 1
    reduced = {0: FP32 + (e if mixed else 0), 1: FP32, 2: FP32, 3: FP32 * copies}[stage] * moved
    kept, step = run.kept_bytes, run.workspace_bytes

    def gathered(block_in_use: int | None) -> int:
        """Stage 3: head and embedding, blocks kept for their backward pass, prefetched ones."""
        if stage != 3:
            return 0
        whole = L if block_in_use is None else block_in_use
        kept_blocks = sum(zero.stays_gathered(i) for i in range(whole))
        free = zero.block - zero.persistent(run.cost.weights)
        blocks = min(kept_blocks * free + min(zero.prefetched, free), whole * free)
        return e * (2 * embedding + blocks + (0 if block_in_use is None else free))

    def gradients(blocks_done: int) -> int:
        share = (blocks_done * trained_block + embedding) / P
        if stage < 2:
            return between + int(e * P * share)
        return max(between, int(FP32 * shard * share)) + e * embedding

    yield from head_moments(run, fixed, gathered(None), between, buffer, buffer)
    in_flight = reduced if stage > 1 else 0  # stages 0 and 1 reduce after the last micro-batch
    for i in reversed(range(L)):
        yield moment(
            f"backward pass of block {i}",
            fixed,
            weights=gathered(i),
            gradients=gradients(L - 1 - i),
            activations=(i + 1) * kept,
            workspace=step + buffer + (e * trained_block if stage > 1 else 0),
        )
        yield moment(
            f"reduction of block {i}'s gradients",
            fixed,
            weights=gathered(i),
            gradients=gradients(L - 1 - i),
            activations=i * kept,
            workspace=buffer + in_flight,
        )
    yield moment(
        "reduction of the last gradients",
        fixed,
        weights=gathered(0),
        gradients=(between + e * P) if stage < 2 else FP32 * shard + e * embedding,
        workspace=buffer + reduced,
    )
    yield moment(
        "optimizer step",
        fixed,
        gradients=max(between, e * P if stage == 0 else FP32 * shard),
        workspace=buffer + (FP32 * P if stage == 0 and mixed else 0) + run.update_cost.workspace,
    )


def traffic(run: Run) -> list[Collective]:
    """Gradients travel as fp32, as our JSON asks; stages 0 and 1 reduce after the last micro-batch,
    the others after each. Stage 2 of DeepSpeed 0.19 all-reduces, though each process keeps a shard.
    """
    zero, D, e, times = Zero(run), run.processes, run.element, run.accumulation
    P = zero.parameters
    if zero.stage == 0:
        return [Collective("all_reduce", "gradients", FP32 * P, D)]
    if zero.stage in (1, 2):
        once = P if e == FP32 else zero.aligned  # stage 1 in bf16: of its fp32 copies
        reduced = once if zero.stage == 1 else times * P
        found = [Collective("all_reduce", "gradients", FP32 * reduced, D)]
        if D > 1:
            found.append(Collective("all_gather", "updated weights", e * zero.aligned, D))
        return found
    reduced = zero.padded(zero.trainable)
    found = [Collective("reduce_scatter", "gradients", times * FP32 * reduced, D)]
    if D > 1:
        small = zero.persistent(run.weights, padded=True)
        updated = zero.persistent(zero.trainable, padded=True)
        large, again = zero.padded(run.weights) - small, gathered_again(run, zero)
        found += [
            Collective("all_gather", "weights, forward", times * e * large, D),
            Collective("all_gather", "weights, backward", times * e * again, D),
            Collective("all_gather", "updated small weights", e * updated, D),
        ]
    return found


def gathered_again(run: Run, zero: Zero) -> int:
    """Elements of large parameters that are not kept from the forward to the backward pass."""

    def large(weights: Sequence[Weight]) -> int:
        return zero.padded(weights) - zero.persistent(weights, padded=True)

    freed = sum(not zero.stays_gathered(i) for i in range(run.config.model.n_layers))
    ends = [run.root[0], run.root[-1]]
    stay = zero.root_stays_gathered
    root = [weight for weight, stays in zip(ends, stay, strict=True) if not stays]
    return freed * large(run.cost.weights) + large(root)


def ways(run: Run) -> Iterator[tuple[EngineOptions, list[str]]]:
    """The stages that a search tries, with their overrides."""
    for stage in range(4):
        engine = DeepSpeedOptions(
            name="deepspeed", timeout_seconds=run.config.engine.timeout_seconds, zero_stage=stage
        )
        yield engine, ["engine=deepspeed", f"engine.zero_stage={stage}"]
