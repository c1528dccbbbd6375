"""What one block of a model costs, as its method counts it: the terms, and what all methods share.

Symbols: d = d_model, f = d_ff, r = rank, n = sequence length. FLOPs are those of the model's own
widths; what is saved and held has the widths that are stored (config/widths.py). tests/methods/
counts the same on the real modules, to the digit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from cola_train.config.groups import ModelConfig
from cola_train.config.widths import stored


@dataclass(frozen=True)
class Weight:
    """A parameter. Frozen ones (not trainable) have neither gradients nor optimizer state.

    shape: as checkpoints have it; a `Width` in it is stored with zeros.
    in_block: not so for embedding, head and the norm before it.
    """

    shape: tuple[int, ...]
    trainable: bool = True
    in_block: bool = True

    @property
    def block_matrix(self) -> bool:
        """Whether it is a matrix of a block: what optimizers of matrices work on."""
        return self.in_block and len(self.shape) == 2

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def stored(self) -> "Weight":
        """With its zeros: what memory, gradients and the optimizer's state have."""
        return replace(self, shape=tuple(map(stored, self.shape)))


@dataclass(frozen=True)
class PassFlops:
    """Of products of weights alone, which come once a micro-batch, however many its positions."""

    forward: int = 0
    backward: int = 0
    recomputed: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class BlockCost:
    """One block's weights, and for one position of a sequence what its step costs; beside that,
    what comes once a micro-batch.

    Products count, norms and activations do not. A block's output counts to the next block, as
    that one's input.

    backward_flops: without recomputation; attention's kernel computes the scores again, and that
        counts.
    recomputed_flops: what the backward pass computes again.
    saved, saved_fp32: elements kept for the backward pass, in the compute dtype and in fp32.
    workspace: most elements that the backward pass holds beside them, in the compute dtype.
    pass_flops, pass_workspace: FLOPs and such elements of a micro-batch, not of each position.
    buffer_bytes: of buffers, which every process holds whole.
    """

    weights: tuple[Weight, ...]
    forward_flops: int
    backward_flops: int
    recomputed_flops: int
    saved: int
    saved_fp32: int
    workspace: int
    pass_flops: PassFlops = PassFlops()
    pass_workspace: int = 0
    buffer_bytes: int = 0

    def saved_bytes(self, element: int) -> int:
        """Bytes kept for one position; `element`: of the compute dtype."""
        return element * self.saved + 4 * self.saved_fp32


@dataclass(frozen=True)
class CacheCost:
    """What generation keeps of one position in one block, and what a new token then costs there.

    about: in words. elements: kept, in the compute dtype; models in use have no padding. flops: for
    each position that is attended to. workspace: elements made anew of each such position, of one
    block at a time.
    """

    about: str
    elements: int
    flops: int
    workspace: int = 0


def key_value_cache(model: ModelConfig) -> CacheCost:
    """Keys and values, as any method has them."""
    return CacheCost("keys and values", elements=2 * model.d_model, flops=4 * model.d_model)


def norm_weights(model: ModelConfig) -> tuple[Weight, ...]:
    """The two norms of a block; and those of each head's queries and keys, if it has them."""
    of_heads = (Weight((model.head_dim,)),) * (2 if model.qk_norm else 0)
    return (Weight((model.d_model,)),) * 2 + of_heads


def attention_flops(model: ModelConfig, length: int) -> int:
    """Forward: two matmuls over the whole n x n square, as is the custom."""
    return 4 * length * model.d_model


def attention_backward_flops(model: ModelConfig, length: int) -> int:
    """Five matmuls: the kernel computes the scores again."""
    return 10 * length * model.d_model


def all_or_input(
    model: ModelConfig,
    length: int,
    policy: str,
    *,
    weights: Iterable[Weight],
    forward: int,
    backward: int,
    saved: int,
    workspace: tuple[int, int],
    not_again: int,
) -> BlockCost:
    """Of a block that keeps for its backward pass all that this takes under the policy `none`, and
    its input alone under any other.

    weights, forward, backward: of its linears, and their FLOPs. saved, workspace: as of a
    `BlockCost`, all that it takes and of either policy. not_again: forward FLOPs that a
    recomputation does without.
    """
    keeps_all, attention = policy == "none", attention_flops(model, length)
    return BlockCost(
        weights=(*weights, *norm_weights(model)),
        forward_flops=forward + attention,
        backward_flops=backward + attention_backward_flops(model, length),
        recomputed_flops=0 if keeps_all else forward + attention - not_again,
        saved=saved if keeps_all else model.d_model,
        saved_fp32=norms_fp32(model) + attention_fp32(model) if keeps_all else 0,
        workspace=workspace[0 if keeps_all else 1],
    )


def unnormed(model: ModelConfig) -> int:
    """Elements of queries and keys before their norms, which keep them; where these are views of
    what is kept anyway, they are none."""
    return 2 * model.d_model if model.qk_norm else 0


def norms_fp32(model: ModelConfig) -> int:
    """Kept for a position's backward pass: one number of each norm ..."""
    return 2 + (2 * model.n_heads if model.qk_norm else 0)


def attention_fp32(model: ModelConfig) -> int:
    """... and of attention the logarithm of each head's sum."""
    return model.n_heads
