"""The LLaMA decoder. It knows nothing of training: methods choose its linears, and sharding,
recomputation and compilation are applied from outside.

Shapes: B sequences, T positions, D = d_model, F = d_ff, V = vocabulary.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cola_train.config import ModelConfig
from cola_train.model.attention import (
    Attention,
    Projections,
    attention_documents,
    rotary_table,
)
from cola_train.model.loss import linear_cross_entropy

INIT_STD = 0.02
INIT_ROWS = 256  # rows drawn from one seed: a process draws only the blocks it holds a part of


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; ones at first."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """down(f(gate(x)) * up(x)), f = SiLU (SwiGLU) or, where the method drops it, identity."""

    def __init__(self, d_model: int, d_ff: int, silu: bool, projections: Projections) -> None:
        super().__init__()
        self.silu = silu
        self.gate_up = projections(d_model, {"gate": d_ff, "up": d_ff})
        self.down = projections(d_ff, {"down": d_model})

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        if self.silu:
            gate_BTF = F.silu(gate_BTF)
        return self.down(gate_BTF * up_BTF)[0]


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, projections: Projections, gate_silu: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config.d_model, config.n_heads, config.attention, projections)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config.d_model, config.d_ff, gate_silu, projections)

    def forward(self, x_BTD: Tensor, table: Tensor, documents: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), table, documents)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


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
    """A decoder-only transformer of `config`'s shape whose linears `projections` builds.

    Build it under `torch.device("meta")`, shard it, call `to_empty`, then `init_weights`.
    """

    def __init__(
        self, config: ModelConfig, projections: Projections, gate_silu: bool, max_length: int
    ) -> None:
        super().__init__()
        self.config = config
        self.max_length = max_length
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            Block(config, projections, gate_silu) for _ in range(config.n_layers)
        )
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
