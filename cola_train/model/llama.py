"""The LLaMA decoder. It knows nothing of training: methods choose its linears, and sharding,
recomputation and compilation are applied from outside.

Shapes: B sequences, T positions, D = d_model, F = d_ff, V = vocabulary.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cola_train.config.groups import ModelConfig
from cola_train.config.schema import Config
from cola_train.hardware import compiled_on, compute_dtype, kernels_on
from cola_train.model import cpu
from cola_train.model.attention import Attention, rotary_for, rotary_table
from cola_train.model.context import MASKS, AttentionContext, Cache
from cola_train.model.init import Fill, computed, normal
from cola_train.model.linear import INIT_STD
from cola_train.model.loss import CrossEntropy, cross_entropy_, linear_cross_entropy
from cola_train.model.norm import RMSNorm
from cola_train.model.tap import tap


class Layers(Protocol):
    """What a method builds of a block. A module with parameters or buffers of its own has `init`
    (see model/init.py)."""

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        """The linears, named in `d_outs` (name to width), of one input.

        Their forward takes x (..., d_in) and, if there is one projection, maybe a residual to add;
        it returns a tuple of (..., d_out), in order.
        """
        ...

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        """The MLP. Its forward maps x and residual, (..., d_model) each, to their (..., d_model)
        sum. d_ff is an `InnerWidth`: its weights may be stored padded (model/padding.py)."""
        ...


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream.

    The two halves are methods of their own, for recomputation to wrap.
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention_norm = RMSNorm(d_model, config.norm_eps)
        qk_eps = config.norm_eps if config.qk_norm else None
        self.attention = Attention(d_model, config.n_heads, layers.projections, qk_eps)
        self.mlp_norm = RMSNorm(d_model, config.norm_eps)
        self.mlp = layers.mlp(d_model, config.inner)

    def forward(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        return self.feed_forward(self.attend(tap("residual", x_BTD), context))

    def attend(self, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        return self.attention(self.attention_norm(x_BTD), context, x_BTD)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        return self.mlp(self.mlp_norm(x_BTD), x_BTD)


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, d_model: int, std: float) -> None:
        """std: with which it begins."""
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)

    def init(self, name: str) -> Fill:
        return normal(self.std)


class Head(nn.Module):
    """The output projection and the loss over it: the module that owns the weight uses it."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        # inference/prepare.py may choose another
        self.linear: Callable[[Tensor, Tensor], Tensor] = F.linear
        self.cross_entropy: CrossEntropy = cross_entropy_  # build_model may choose another
        self.z_loss = 0.0
        self.z_sum: Tensor | None = None  # of z-loss's terms, until `Llama.sums` takes it

    def forward(self, h_BTD: Tensor, targets_BT: Tensor | None) -> Tensor:
        """Logits (B, T, V), or with targets the summed cross-entropy (fp32 scalar)."""
        if targets_BT is None:
            return self.linear(h_BTD, self.weight)
        loss = linear_cross_entropy(h_BTD, self.weight, targets_BT, self.cross_entropy, self.z_loss)
        if loss.dim() == 0:
            return loss
        loss, z = loss.unbind()
        self.z_sum = z.detach() if self.z_sum is None else self.z_sum + z.detach()
        return loss.clone()  # FSDP2 warns of what is a view

    def init(self, name: str) -> Fill:
        return normal(INIT_STD)


class Llama(nn.Module):
    """A decoder-only transformer of `config`'s shape whose linears and MLPs `layers` builds.

    Build it under `torch.device("meta")`, shard it, call `to_empty`, then `init.initialise`.
    """

    def __init__(self, config: ModelConfig, layers: Layers, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.max_length = max_length
        self.embedding = Embedding(config.vocab_size, config.d_model, config.embedding_std)
        self.layers = nn.ModuleList(Block(config, layers) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Head(config.d_model, config.vocab_size)
        self.make_mask = MASKS[config.attention]
        self.rotary: Tensor
        self.register_buffer(
            "rotary", torch.empty(2, max_length, config.head_dim), persistent=False
        )

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
        at_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with targets, the summed cross-entropy in nats (fp32 scalar).

        Args:
            tokens_BT: int64, T at most `max_length`; with a cache, what follows it.
            targets_BT: int64, IGNORE_INDEX where no loss is wanted.
            documents_BT: int, the document of each position; those of one row do not see each
                other. None: the row is one document.
            cache: of the positions before, which then has these too.
            last: logits of the last so many positions alone; None: of all.
            at_BT: bool, logits of these positions alone, (N, V), row after row.
        """
        x_BTD = self.embedding(tokens_BT)
        contexts: Iterable[AttentionContext]
        if cache is None:
            mask = self.make_mask(documents_BT, x_BTD)
            contexts = repeat(AttentionContext(rotary_for(self.rotary, x_BTD), mask))
        else:
            contexts = cache.contexts(self.rotary, x_BTD)
        for layer, context in zip(self.layers, contexts, strict=False):
            x_BTD = layer(x_BTD, context)
        if last is not None:
            x_BTD = x_BTD[:, -last:]
        if at_BT is not None:
            x_BTD = x_BTD[at_BT]  # (N, D)
        return self.head(self.norm(x_BTD), targets_BT)

    def sums(self) -> dict[str, Tensor]:
        """What else forward passes have summed over tokens since the last call (fp32 scalars)."""
        z_sum, self.head.z_sum = self.head.z_sum, None
        return {} if z_sum is None else {"z_loss": z_sum}

    def init(self, name: str) -> Fill:
        length, config = self.max_length, self.config
        return computed(partial(rotary_table, length, config.head_dim, config.rope_theta))


def build_model(config: Config, layers: Layers, device: torch.device) -> Llama:
    """The model on the meta device, shapes without memory, as it will run on `device`."""
    with torch.device("meta"):
        model = Llama(config.model, layers, config.train.sequence_length)
    model.head.z_loss = config.train.z_loss
    if device.type == "cpu":
        dtype = compute_dtype(config.train.precision, device)
        cpu.specialise(model, dtype, compiled=compiled_on(device, config))
    if kernels_on(device, config.kernels, config.train.precision) == "triton":
        from cola_kernels.ops import cross_entropy

        model.head.cross_entropy = cross_entropy.cross_entropy_
        dtype = compute_dtype(config.train.precision, device)
        cross_entropy.warm_up(config.model.vocab_size, dtype, device, config.train.z_loss)
    return model
