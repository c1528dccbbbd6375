"""A checkpoint of CoLA's reference code, made from the description of its names and shapes, and its
equations in plain torch. Both kinds: CoLA, and CoLA-M, which cuts blocks where it saves."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

V, D, FF, LAYERS, HEADS, R = 300, 32, 43, 3, 2, 6
BLOCK = {  # projection: d_in, d_out, where CoLA-M has its A and its B
    "self_attn.q": (D, D, "pre_attn.pre_q", "self_attn.post_q"),
    "self_attn.k": (D, D, "pre_attn.pre_k", "self_attn.post_k"),
    "self_attn.v": (D, D, "pre_attn.pre_v", "self_attn.post_v"),
    "self_attn.o": (D, D, "self_attn.pre_o", "post_attn.post_o"),
    "mlp.gate": (D, FF, "pre_mlp.pre_gate", "self_mlp.post_gate"),
    "mlp.up": (D, FF, "pre_mlp.pre_up", "self_mlp.post_up"),
    "mlp.down": (FF, D, "self_mlp.pre_down", ""),  # B: in the next layer's module
}


def factor_names(split: bool) -> Iterator[tuple[int, str, str, str]]:
    """(layer, projection, A or B, name) of every factor; split: CoLA-M's names."""
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name, (_, _, pre, post) in BLOCK.items():
            a, b = (f"{layer}.{pre}", f"{layer}.{post}") if split else (f"{layer}.{name}",) * 2
            if split and not post:
                after = f"model.layers.{i + 1}.last_layer_post_mlp.post_down"
                b = after if i < LAYERS - 1 else f"{layer}.post_mlp.post_down"
            yield i, name, "A", f"{a}_proj.cola_a"
            yield i, name, "B", f"{b}_proj.cola_b"


def official_weights(split: bool) -> dict[str, Tensor]:
    """Random ones, by name."""
    draw = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "lm_head.weight": (V, D),
    }
    for _, projection, factor, name in factor_names(split):
        d_in, d_out, _, _ = BLOCK[projection]
        shapes[name] = (d_in, R) if factor == "A" else (R, d_out)
    norms = ["model.norm.weight"]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"]
    weights = {n: 0.4 * torch.randn(shape, generator=draw) for n, shape in shapes.items()}
    return weights | {n: 1 + 0.1 * torch.randn(D, generator=draw) for n in norms}


def official_logits(w: dict[str, Tensor], tokens: Tensor, split: bool, gate_silu: bool) -> Tensor:
    """(B, T) -> (B, T, V), as the reference code computes: row vectors times its matrices."""
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        names = {n: (pre, post) if split else (n, n) for n, (_, _, pre, post) in BLOCK.items()}

        def down(y: Tensor, name: str, at: str = at, names: dict = names) -> Tensor:
            return F.silu(y @ w[f"{at}{names[name][0]}_proj.cola_a"])

        def up(z: Tensor, name: str, at: str = at, names: dict = names) -> Tensor:
            return z @ w[f"{at}{names[name][1]}_proj.cola_b"]

        if split and i > 0:
            x = x + z @ w[f"{at}last_layer_post_mlp.post_down_proj.cola_b"]  # noqa: F821
        y = norm(x, w[f"{at}input_layernorm.weight"])
        q, k, v = (up(down(y, f"self_attn.{p}"), f"self_attn.{p}") for p in "qkv")
        x = x + up(down(attention(q, k, v), "self_attn.o"), "self_attn.o")
        y = norm(x, w[f"{at}post_attention_layernorm.weight"])
        gate, y = (up(down(y, f"mlp.{p}"), f"mlp.{p}") for p in ("gate", "up"))
        z = down((F.silu(gate) if gate_silu else gate) * y, "mlp.down")
        if not split:
            x = x + up(z, "mlp.down")
    if split:
        x = x + z @ w[f"model.layers.{LAYERS - 1}.post_mlp.post_down_proj.cola_b"]
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, T, _ = q.shape
    K = D // HEADS
    q, k, v = (y.view(B, T, HEADS, K).transpose(1, 2) for y in (q, k, v))
    angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, K, 2) / K)
    cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))

    def turned(y: Tensor) -> Tensor:
        return y * cos + torch.cat([-y[..., K // 2 :], y[..., : K // 2]], -1) * sin

    scores = turned(q) @ turned(k).transpose(-1, -2) / K**0.5
    scores = scores.masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D)


def write_official(
    folder: Path,
    split: bool,
    gate_silu: bool,
    torch_file: bool,
    weights: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What the reference code's `save_pretrained` and its trainer write; weights: its own if
    None."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = official_weights(split) if weights is None else weights
    if torch_file:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    torch.save({"optimizer": {"state": {0: torch.ones(3)}}}, folder / "optimizer.pt")
    (folder / "training_state.json").write_text('{"global_step": 7}')
    config = {
        "architectures": ["ColaMForCausalLM" if split else "ColaForCausalLM"],
        "model_type": "cola", "vocab_size": V, "hidden_size": D, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "head_dim": D // HEADS, "hidden_act": "silu", "lr_act_type": "silu", "rank": R,
        "only_lr_act": not gate_silu, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0,
        "max_sequence_length": 1024, "max_position_embeddings": 2048, "pretraining_tp": 1,
        "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return weights
