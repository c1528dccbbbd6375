"""Bytes that one process holds, by part, at each moment of a step that could be its peak.

The peak is the largest moment: as the backward pass goes down the blocks, activations go and
gradients come, and a vocabulary's logits or a whole embedding's gradient can be larger than either.
docs/planning.md explains the moments, which each engine's planner lists; tests hold their peak to
that of real runs.

N positions of a micro-batch; d, f, r as in methods/costs.py; V vocabulary, L blocks, e bytes of the
compute dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cola_train.planning.run import FP32, Run

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "workspace")

# model/loss.py's and model/cpu.py's constants, to which a test holds them
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


def memory(run: Run) -> Memory:
    """Peak of a training step after the first, on the process that holds most."""
    moments = list(run.planner.moments(run))
    largest = {part: max(m.parts[part] for m in moments) for part in PARTS}
    return Memory(max(moments, key=lambda m: m.total), largest)


def moment(name: str, fixed: dict[str, int], **parts: int) -> Moment:
    """`fixed` is alive all the time; `parts` now."""
    return Moment(name, {part: fixed.get(part, 0) + parts.get(part, 0) for part in PARTS})


def head_moments(
    run: Run, fixed: dict[str, int], weights: int, gradients: int, workspace: int, buffer: int
) -> Iterator[Moment]:
    """The loss, chunk by chunk, and the head's backward pass, while every block's activations are
    kept. workspace: of the first; buffer: of the second."""
    head = loss_bytes(run)
    kept = run.config.model.n_layers * run.kept_bytes + head.kept
    alive = {"weights": weights, "gradients": gradients, "activations": kept}
    yield moment("loss", fixed, **alive, logits=head.peak, workspace=workspace)
    yield moment(
        "backward pass of the head", fixed, **alive, logits=head.backward, workspace=buffer
    )


@dataclass(frozen=True)
class LossBytes:
    """Bytes of the head and the loss: kept for the backward pass of the last norm; at the peak of
    the chunk by chunk forward, which computes gradients too; in the backward pass."""

    kept: int
    peak: int
    backward: int


def loss_bytes(run: Run) -> LossBytes:
    """model/loss.py's buffers."""
    model, e, N = run.config.model, run.element, run.tokens
    V, d = model.vocab_size, model.d_model
    rows = max(1, CHUNK_BYTES // (e * V))
    chunks = -(-N // rows)
    rows = min(rows, N)
    logits, dh, weight = e * rows * V, e * N * d, e * V * d
    part = min(rows, max(1, SOFTMAX_BYTES // (FP32 * V))) if run.on_cpu else rows
    # the probabilities, the logits as fp32, and the part before until this one is there
    copies = 0 if run.triton else 1 + (e != FP32) + (part < rows)
    softmax = logits + copies * FP32 * part * V
    total = weight if chunks == 1 else FP32 * V * d
    if run.on_cpu or e == FP32:
        sums = 0 if chunks == 1 else weight if chunks == 2 else total
        # the second chunk's: its own, the first's and their sum in fp32
        matmuls = logits + (weight if chunks == 1 else 2 * weight + total)
    else:  # a GEMM adds each chunk's to the sum
        sums = 0 if chunks == 1 else total
        matmuls = logits + total
    if chunks > 1:
        softmax = max(softmax, 2 * logits)
    kept = 2 * e * N * d + FP32 * N  # the last norm's input and output
    backward = total + weight + 2 * dh
    return LossBytes(kept, dh + max(softmax + sums, matmuls), backward)
