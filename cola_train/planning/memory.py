"""Bytes that one process holds, by part, at each moment of a step that could be its peak.

The peak is the largest moment: as the backward pass goes down the blocks, activations go and
gradients come, and a vocabulary's logits or a whole embedding's gradient can be larger than either.
docs/planning.md explains the moments; tests/test_plan.py holds their peak to that of real runs.

N positions of a micro-batch, T a sequence; d, f, r, V, L as in costs.py; e bytes of the compute
dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from cola_train import costs
from cola_train.planning.run import FP32, Job
from cola_train.planning.zero import STAGE0_BUCKET, Zero

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "workspace")

# model/loss.py's constants, to which a test holds them
CHUNK_BYTES = 128 * 2**20
SOFTMAX_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Moment:
    """What is alive at one moment of a step, bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """A step's peak, and the most that each part takes at any moment."""

    peak: Moment
    largest: dict[str, int]

    @property
    def total(self) -> int:
        return self.peak.total


def memory(job: Job) -> Memory:
    """Peak of a training step after the first, on the process that holds most."""
    moments = list(
        zero_moments(job) if job.config.engine.name == "deepspeed" else fsdp_moments(job)
    )
    largest = {part: max(m.parts[part] for m in moments) for part in PARTS}
    return Memory(max(moments, key=lambda m: m.total), largest)


def fsdp_moments(job: Job) -> Iterator[Moment]:
    """FSDP2, as parallel/shard.py applies it: a group for each block, embedding and head in the
    root's, which stays gathered from its forward to its backward pass."""
    config, block, root = job.config, job.block, job.root
    L, e, S = config.model.n_layers, job.element, job.shard_size
    shards = FP32 * (L * block.chunks + root.chunks)
    fixed = {"weights": shards, "optimizer": 2 * shards}
    reshard = bool(config.engine.reshard_after_forward)

    # What earlier micro-batches left: shards, or whole gradients if they wait for the last one.
    def gradients(reduced: int, root_reduced: bool = False) -> int:
        """Before, during and after the last micro-batch's backward pass."""
        if job.accumulation == 1:
            return FP32 * (reduced * block.chunks + root_reduced * root.chunks)
        if config.engine.sync_every_micro_batch:
            return shards
        whole = (L - reduced) * block.elements + (not root_reduced) * root.elements
        return FP32 * (whole + reduced * block.chunks + root_reduced * root.chunks)

    # All-gathers go through one flat buffer, from which each parameter is copied.
    flat = e * block.padded if S > 1 else 0

    def moment(name: str, **parts: int) -> Moment:
        whole = {part: fixed.get(part, 0) + parts.get(part, 0) for part in PARTS}
        return Moment(name, whole)

    def gathered(blocks: int) -> int:
        return e * (root.padded + block.padded * (blocks if not reshard else min(blocks, 1)))

    kept, step = saved_bytes(job), block_bytes(job)
    head = costs_of_loss(job)
    yield moment(
        "loss",
        weights=gathered(0 if reshard else L),
        gradients=gradients(0),
        activations=L * kept + head.kept,
        logits=head.peak,
        workspace=flat,
    )
    yield moment(
        "backward pass of the head",
        weights=gathered(0 if reshard else L),
        gradients=gradients(0),
        activations=L * kept + head.kept,
        logits=head.backward,
    )
    head_gradient = e * prod(costs.root_shapes(config)[-1])
    for i in reversed(range(L)):
        done = L - 1 - i
        prefetched = flat if reshard and i > 0 else 0
        yield moment(
            f"backward pass of block {i}",
            weights=gathered(i + 1),
            gradients=head_gradient + gradients(done) + e * block.elements // 3,
            activations=(i + 1) * kept,
            workspace=step + prefetched + (FP32 * block.padded if done else 0),
        )
        yield moment(
            f"reduction of block {i}'s gradients",
            weights=gathered(0 if reshard else i),
            gradients=head_gradient + gradients(done),
            activations=i * kept,
            workspace=prefetched
            + e * job.tokens * config.model.d_model
            + reduction(job, block.padded),
        )
    yield moment(
        "reduction of embedding's and head's gradients",
        gradients=gradients(L, root_reduced=job.accumulation > 1),
        workspace=reduction(job, root.padded),
    )
    yield moment("optimizer step", gradients=shards)


def reduction(job: Job, elements: int) -> int:
    """Buffers of one reduce-scatter: its input, flat and in fp32, and its output."""
    whole, shard = FP32 * elements, FP32 * elements // job.shard_size
    copied = job.element * elements  # the gradients, until they are in the input
    if not job.on_cpu:
        return whole + max(shard, copied)
    gloo = 0
    if job.processes > 1:  # its average, and its chunks
        gloo = whole + (shard if job.shard_size > 1 else 0)
    return whole + max(shard + gloo, copied)


@dataclass(frozen=True)
class LossBytes:
    """Bytes of the head and the loss: kept for the backward pass of the last norm; at the peak of
    the chunk by chunk forward, which computes gradients too; in the backward pass."""

    kept: int
    peak: int
    backward: int


def costs_of_loss(job: Job) -> LossBytes:
    """model/loss.py's buffers."""
    model, e, N = job.config.model, job.element, job.tokens
    V, d = model.vocab_size, model.d_model
    rows = max(1, CHUNK_BYTES // (e * V))
    chunks = -(-N // rows)
    rows = min(rows, N)
    logits, dh, weight = e * rows * V, e * N * d, e * V * d
    part = min(rows, max(1, SOFTMAX_BYTES // (FP32 * V))) if job.on_cpu else rows
    # the probabilities, the logits as fp32, and the part before until this one is there
    copies = 1 + (e != FP32) + (part < rows)
    softmax = logits + copies * FP32 * part * V
    sums = 0 if chunks == 1 else weight if chunks == 2 else FP32 * V * d
    total = weight if chunks == 1 else FP32 * V * d
    # the second chunk's: its own, the first's and their sum in fp32
    products = logits + (weight if chunks == 1 else 2 * weight + FP32 * V * d)
    if chunks > 1:
        softmax = max(softmax, 2 * logits)
    kept = 2 * e * N * d + FP32 * N  # the last norm's input and output
    backward = total + weight + 2 * dh
    return LossBytes(kept, dh + max(softmax + sums, products), backward)


def saved_bytes(job: Job) -> int:
    """What one block keeps of a micro-batch for its backward pass."""
    return job.tokens * costs.block_saved_bytes_per_token(job.config, job.fused, job.element)


def block_bytes(job: Job) -> int:
    """Most that one block's backward pass holds beside what it kept: what it recomputes, and the
    gradients of what it kept. The peak is in the MLP, whose d_ff-wide gradients are the largest."""
    model, policy = job.config.model, job.config.recompute.name
    d, f = model.d_model, model.d_ff
    if job.config.method.name != "cola":
        elements = 5 * f + 10 * d if policy == "full" else 2 * f + d
    else:
        r = job.config.rank
        if job.fused:
            f = -(-f // 16) * 16  # rows aligned for the kernels
            elements = {"none": 4 * f + d + 2 * r, "full": 4 * f + 8 * d + 9 * r}.get(
                policy, 4 * f + 2 * d + 2 * r
            )
        else:
            elements = {"none": 2 * f + d, "full": 5 * f + 8 * d + 12 * r}.get(
                policy, 5 * f + 2 * d + r
            )
    return job.element * job.tokens * elements


def zero_moments(job: Job) -> Iterator[Moment]:
    """DeepSpeed's ZeRO stages: flat buffers of all parameters, reduced bucket by bucket.

    As in version 0.19.8: bf16 gradients become fp32 before they are reduced; stage 1 keeps the fp32
    gradients of all parameters from one step to the next, stage 3 its shard of them and the bucket.
    """
    config, zero = job.config, Zero(job)
    stage, L, e = zero.stage, config.model.n_layers, job.element
    block, P, D = job.block.elements, zero.parameters, job.processes
    embedding = prod(costs.root_shapes(config)[0])
    shard = -(-P // D) if stage else P
    mixed = e != FP32
    # Offloaded, state is in the host's memory, or on a disk; not measured.
    offloads = [config.engine.offload_optimizer, config.engine.offload_parameters]
    state_here, weights_here = (where in (None, "none") for where in offloads)
    weights = (FP32 * shard if (mixed or stage) and state_here else 0) + (
        e * (shard if stage == 3 else P) if weights_here else 0
    )
    if stage == 3:
        weights += e * zero.persistent(zero.all_shapes)
    fixed = {"weights": weights, "optimizer": 2 * FP32 * shard if state_here else 0}
    between = {0: 0, 1: FP32 * P, 2: 0, 3: FP32 * shard if state_here else 0}[stage]
    buffer = {0: 0, 1: 0, 2: e * zero.bucket, 3: FP32 * zero.bucket}[stage]
    # a bucket, or a gradient too large for it, on its way: as fp32, and gloo's copy of it
    # (stage 0's is of fixed size)
    moved = min(STAGE0_BUCKET if stage == 0 else max(zero.bucket, embedding), P)
    copies = 2 if stage == 3 and job.on_cpu and D > 1 else 1
    reduced = {0: e + FP32, 1: FP32, 2: FP32, 3: FP32 * copies}[stage] * moved
    kept, step, head = saved_bytes(job), block_bytes(job), costs_of_loss(job)

    def moment(name: str, **parts: int) -> Moment:
        return Moment(name, {part: fixed.get(part, 0) + parts.get(part, 0) for part in PARTS})

    def gathered(block_in_use: int | None) -> int:
        """Stage 3: head and embedding, blocks kept for their backward pass, prefetched ones."""
        if stage != 3:
            return 0
        whole = L if block_in_use is None else block_in_use
        kept_blocks = sum(zero.stays_gathered(i) for i in range(whole))
        free = block - zero.persistent(job.block.shapes)
        blocks = min(kept_blocks * free + min(zero.prefetched, free), whole * free)
        return e * (2 * embedding + blocks + (0 if block_in_use is None else free))

    def gradients(blocks_done: int) -> int:
        share = (blocks_done * block + embedding) / P
        if stage < 2:
            return between + int(e * P * share)
        return max(between, int(FP32 * shard * share)) + e * embedding

    yield moment(
        "loss",
        weights=gathered(None),
        gradients=between,
        activations=L * kept + head.kept,
        logits=head.peak,
        workspace=buffer,
    )
    yield moment(
        "backward pass of the head",
        weights=gathered(None),
        gradients=between,
        activations=L * kept + head.kept,
        logits=head.backward,
        workspace=buffer,
    )
    in_flight = reduced if stage > 1 else 0  # stages 0 and 1 reduce after the last micro-batch
    for i in reversed(range(L)):
        yield moment(
            f"backward pass of block {i}",
            weights=gathered(i),
            gradients=gradients(L - 1 - i),
            activations=(i + 1) * kept,
            workspace=step + buffer + (e * block if stage > 1 else 0),
        )
        yield moment(
            f"reduction of block {i}'s gradients",
            weights=gathered(i),
            gradients=gradients(L - 1 - i),
            activations=i * kept,
            workspace=buffer + in_flight,
        )
    yield moment(
        "reduction of the last gradients",
        weights=gathered(0),
        gradients=(between + e * P) if stage < 2 else FP32 * shard + e * embedding,
        workspace=buffer + reduced,
    )
    yield moment(
        "optimizer step",
        gradients=max(between, e * P if stage == 0 else FP32 * shard),
        workspace=buffer + (FP32 * P if stage == 0 and mixed else 0),
    )
