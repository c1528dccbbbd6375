"""Names of weights: ours, and those of an exported model, which are LLaMA's in transformers.

A bottleneck's factors are the linears `A` and `B` of a projection: `q_proj.A.weight`, (r, d_in).
"""

import re
from collections.abc import Iterable

OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm",  # Qwen3's
    "attention.k_norm": "self_attn.k_norm",
}
ATTENTION = ("q", "k", "v", "o")
PROJECTION = re.compile(
    r"layers\.(\d+)\.(?:attention|mlp)(?:\.\w+)?\.(q|k|v|o|gate|up|down)(?:_([AB]))?"
)
NORM = re.compile(rf"layers\.(\d+)\.({'|'.join(NORMS)})\.weight")


def exported_names(names: Iterable[str]) -> dict[str, str]:
    """Ours to exported, of a model that a method's `folded` options build.

    Raises:
        KeyError: a weight has no place in an exported model.
    """
    return {name: exported_name(name) for name in names}


def exported_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    if match := NORM.fullmatch(name):
        layer, norm = match.groups()
        return f"model.layers.{layer}.{NORMS[norm]}.weight"
    if match := PROJECTION.fullmatch(name):
        layer, projection, factor = match.groups()
        place = "self_attn" if projection in ATTENTION else "mlp"
        weight = f"{factor}.weight" if factor else "weight"
        return f"model.layers.{layer}.{place}.{projection}_proj.{weight}"
    raise KeyError(name)
