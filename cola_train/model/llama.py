"""The LLaMA decoder. It knows nothing of training: methods choose its linears, and sharding,
recomputation and compilation are applied from outside.

Shapes: B sequences, T positions, D = d_model, F = d_ff, V = vocabulary.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cola_train.config.schema import Config, ModelConfig
from cola_train.model.attention import Attention, attention_documents, rotary_table
from cola_train.model.loss import linear_cross_entropy
from cola_train.model.norm import RMSNorm

INIT_STD = 0.02
INIT_ROWS = 256  # rows drawn from one seed: a process draws only the blocks it holds a part of


class Layers(Protocol):
    """What a method builds of a block."""

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        """The linears, named in `d_outs` (name to width), of one input.

        Their forward takes x (..., d_in) and, if there is one projection, maybe a residual to add;
        it returns a tuple of (..., d_out), in order.
        """
        ...

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        """The MLP. Its forward maps x and residual, (..., d_model) each, to their (..., d_model)
        sum."""
        ...


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream.

    The two halves are methods of their own, for recomputation to wrap.
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        d_model = config.d_model
        self.attention_norm = RMSNorm(d_model, config.norm_eps)
        self.attention = Attention(d_model, config.n_heads, config.attention, layers.projections)
        self.mlp_norm = RMSNorm(d_model, config.norm_eps)
        self.mlp = layers.mlp(d_model, config.d_ff)

    def forward(self, x_BTD: Tensor, table: Tensor, documents: Tensor | None) -> Tensor:
        return self.feed_forward(self.attend(x_BTD, table, documents))

    def attend(self, x_BTD: Tensor, table: Tensor, documents: Tensor | None) -> Tensor:
        return self.attention(self.attention_norm(x_BTD), table, documents, x_BTD)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        return self.mlp(self.mlp_norm(x_BTD), x_BTD)


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.embedding(tokens_BT, self.weight)


class Head(nn.Module):
    """The output projection and the loss over it: the module that owns the weight uses it."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def forward(self, h_BTD: Tensor, targets_BT: Tensor | None) -> Tensor:
        """Logits (B, T, V), or with targets the summed cross-entropy (fp32 scalar)."""
        if targets_BT is None:
            return F.linear(h_BTD, self.weight)
        return linear_cross_entropy(h_BTD, self.weight, targets_BT)


class Llama(nn.Module):
    """A decoder-only transformer of `config`'s shape whose linears and MLPs `layers` builds.

    Build it under `torch.device("meta")`, shard it, call `to_empty`, then `init_weights`.
    """

    def __init__(self, config: ModelConfig, layers: Layers, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.max_length = max_length
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layers) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Head(config.d_model, config.vocab_size)
        self.rotary: Tensor
        self.register_buffer(
            "rotary", torch.empty(2, max_length, config.head_dim), persistent=False
        )

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with targets, the summed cross-entropy in nats (fp32 scalar).

        Args:
            tokens_BT: int64, T at most `max_length`.
            targets_BT: int64, IGNORE_INDEX where no loss is wanted.
            documents_BT: int, the document of each position; those of one row do not see each
                other. None: the row is one document.
        """
        x_BTD = self.embedding(tokens_BT)
        documents = attention_documents(documents_BT, self.config.attention, x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, self.rotary, documents)
        return self.head(self.norm(x_BTD), targets_BT)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter and buffer, the same on any number of processes.

        Linears as their `init_std` says, norms with ones,
        embedding and head with std 0.02.
        """
        for name, parameter, std in self._init_stds():
            if std is None:
                parameter.fill_(1.0)
            else:
                _fill_normal(parameter, std, f"{seed}/{name}")
        config = self.config
        self.rotary.copy_(
            rotary_table(self.max_length, config.head_dim, config.rope_theta, self.rotary.device)
        )

    def _init_stds(self) -> Iterator[tuple[str, nn.Parameter, float | None]]:
        """Each parameter's name and init std; None means ones."""
        for module_name, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, RMSNorm):
                    std: Any = None
                else:
                    std = module.init_std(name) if hasattr(module, "init_std") else INIT_STD
                yield f"{module_name}.{name}", parameter, std


def build_model(config: Config, layers: Layers) -> Llama:
    """The model on the meta device: shapes, no memory."""
    with torch.device("meta"):
        return Llama(config.model, layers, config.train.sequence_length)


def _fill_normal(parameter: Tensor, std: float, key: str) -> None:
    """N(0, std) into a (possibly sharded) parameter: block i of INIT_ROWS rows is drawn from a
    generator seeded by key and i, so the values do not depend on how the rows are sharded."""
    local, first, rows = parameter, 0, parameter.shape[0]
    if isinstance(parameter, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        if tuple(shape[1:]) != tuple(parameter.shape[1:]):
            raise ValueError(f"{key}: only sharding of dimension 0 is supported")
        local, first, rows = parameter.to_local(), offset[0], shape[0]
    generator = torch.Generator(device=local.device)
    for block in range(first // INIT_ROWS, -(-(first + rows) // INIT_ROWS)):
        digest = hashlib.blake2b(f"{key}/{block}".encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        start = block * INIT_ROWS
        drawn = torch.empty(
            min(INIT_ROWS, parameter.shape[0] - start), *parameter.shape[1:], device=local.device
        ).normal_(0.0, std, generator=generator)
        low, high = max(start, first), min(start + len(drawn), first + rows)
        local[low - first : high - first] = drawn[low - start : high - start]
