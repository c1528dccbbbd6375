"""CoLA language models for transformers: LLaMA whose linears are auto-encoders `B s(A x)`.

Source: arXiv 2502.10940. An exported folder carries this file, which imports torch and transformers
alone. It is LLaMA's decoder with other linears: masks, caches, rotary positions, attention
backends, gradient checkpointing and the rest of `forward` are those of the transformers that is
installed.
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

ACTIVATIONS = ("low_rank", "both", "full_rank")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class ColaConfig(LlamaConfig):
    """LLaMA's, the rank r of the linears, ranks of single projections (q, k, v, o, gate, up, down)
    that have another, and where SiLU stands: on the rank-r vectors (low_rank), on SwiGLU's gate
    (full_rank), or on both. qk_norm: RMSNorm of each head's queries and keys before they are
    rotated, as Qwen3 has it."""

    model_type = "cola"
    # Heads and the MLP's inner columns are shared out: what makes them by rows of B, what reads
    # them by columns of A, whose rank-r output is summed before SiLU. What lies between is whole
    # on every process.
    base_model_tp_plan: ClassVar = {
        **{f"layers.*.self_attn.{name}_proj.B": "colwise" for name in "qkv"},
        **{f"layers.*.mlp.{name}_proj.B": "colwise" for name in ("gate", "up")},
        "layers.*.self_attn.o_proj.A": "rowwise",
        "layers.*.mlp.down_proj.A": "rowwise",
    }

    def __init__(
        self,
        rank: int = 128,
        activation: str = "low_rank",
        ranks: dict[str, int] | None = None,
        qk_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for another activation or projection."""
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if others := set(ranks or ()) - set(PROJECTIONS):
            raise ValueError(f"ranks: of {', '.join(PROJECTIONS)}, got {', '.join(others)}")
        self.rank = rank
        self.ranks = ranks
        self.activation = activation
        self.qk_norm = qk_norm
        super().__init__(**kwargs)


class AutoEncoder(nn.Module):
    """B s(A x), s = SiLU or the identity: (..., d_in) -> (..., d_out)."""

    def __init__(self, d_in: int, d_out: int, rank: int, silu: bool) -> None:
        super().__init__()
        self.A = nn.Linear(d_in, rank, bias=False)
        self.act_fn = nn.SiLU() if silu else nn.Identity()
        self.B = nn.Linear(rank, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.B(self.act_fn(self.A(x)))


def normed(norm: nn.Module, head_dim: int, _linear: nn.Module, _x: Any, y: Tensor) -> Tensor:
    """A linear's output (..., heads x head_dim), each head normalised: a hook of the linear, so
    that attention itself is LLaMA's."""
    return norm(y.unflatten(-1, (-1, head_dim))).flatten(-2)


class ColaDecoderLayer(LlamaDecoderLayer):
    """LLaMA's block, its seven linears replaced."""

    def __init__(self, config: ColaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        silu = config.activation != "full_rank"
        for half in (self.self_attn, self.mlp):
            for name, linear in list(half.named_children()):
                if isinstance(linear, nn.Linear):
                    d_in, d_out = linear.in_features, linear.out_features
                    rank = (config.ranks or {}).get(name.removesuffix("_proj"), config.rank)
                    setattr(half, name, AutoEncoder(d_in, d_out, rank, silu))
        if config.qk_norm:
            attention, head_dim = self.self_attn, self.self_attn.head_dim
            for name in "qk":
                norm = LlamaRMSNorm(head_dim, eps=config.rms_norm_eps)
                setattr(attention, f"{name}_norm", norm)
                linear = getattr(attention, f"{name}_proj")
                linear.register_forward_hook(partial(normed, norm, head_dim))
        if config.activation == "low_rank":
            self.mlp.act_fn = nn.Identity()


class ColaPreTrainedModel(LlamaPreTrainedModel):
    config_class = ColaConfig
    _no_split_modules = ["ColaDecoderLayer"]  # noqa: RUF012


class ColaModel(ColaPreTrainedModel, LlamaModel):
    """The decoder without its head, (B, T) -> (B, T, hidden_size)."""

    def __init__(self, config: ColaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaModel's would build every dense linear
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            ColaDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class ColaForCausalLM(ColaPreTrainedModel, LlamaForCausalLM):
    """The language model, (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, config: ColaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = ColaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
