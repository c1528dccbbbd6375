"""Names of weights in checkpoints of CoLA's reference code (github.com/alvin-zyl/CoLA, 91ff0d1).

It multiplies row vectors: `cola_a` is our A transposed, (d_in, r), and `cola_b` our B, (r, d_out).
Its CoLA-M cuts a block where it saves activations, so that a module has what lies between two cuts:
the B of a block's down projection is the next block's.
"""

from collections.abc import Iterable

from cola_train.convert.names import PROJECTION, exported_name

FACTORS = {"A": "cola_a", "B": "cola_b"}
# CoLA-M: where the factor A ("pre") and B ("post") of each projection are.
PARTS = {
    **{(p, "A"): f"pre_attn.pre_{p}_proj" for p in "qkv"},
    **{(p, "B"): f"self_attn.post_{p}_proj" for p in "qkv"},
    ("o", "A"): "self_attn.pre_o_proj",
    ("o", "B"): "post_attn.post_o_proj",
    **{(p, "A"): f"pre_mlp.pre_{p}_proj" for p in ("gate", "up")},
    **{(p, "B"): f"self_mlp.post_{p}_proj" for p in ("gate", "up")},
    ("down", "A"): "self_mlp.pre_down_proj",
}
DOWN_OF_LAST, DOWN_OF_NEXT = "post_mlp.post_down_proj", "last_layer_post_mlp.post_down_proj"


def is_official(names: Iterable[str]) -> bool:
    """Whether a checkpoint's tensors are those of the reference code."""
    return any(name.endswith(tuple(f".{factor}" for factor in FACTORS.values())) for name in names)


def is_split(names: Iterable[str]) -> bool:
    """Whether they are those of its CoLA-M."""
    return any(".pre_attn." in name for name in names)


def official_names(names: Iterable[str], n_layers: int, split: bool) -> dict[str, str]:
    """Ours to theirs; split: CoLA-M's. Factors are to be transposed (`is_official` of a name)."""
    return {name: _official_name(name, n_layers, split) for name in names}


def _official_name(name: str, n_layers: int, split: bool) -> str:
    match = PROJECTION.fullmatch(name)
    if match is None or match[3] is None:
        return exported_name(name)
    layer, projection, factor = int(match[1]), match[2], match[3]
    if not split:
        return exported_name(name).replace(f".{factor}.weight", f".{FACTORS[factor]}")
    part = PARTS.get((projection, factor))
    if part is None:
        part = DOWN_OF_NEXT
        layer += 1
        if layer == n_layers:
            layer, part = layer - 1, DOWN_OF_LAST
    return f"model.layers.{layer}.{part}.{FACTORS[factor]}"
