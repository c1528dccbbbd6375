"""Parameters and FLOPs from a configuration: one truth for MFU, benchmarks and the docs.

Symbols: d = d_model, f = d_ff, r = rank, n = sequence length, V = vocabulary, L = layers.
"""

from math import prod

from cola_train.config.schema import Config


def linear_shapes(config: Config) -> list[tuple[int, int]]:
    """(d_in, d_out) of the seven linears of one block: q, k, v, o, gate, up, down."""
    d, f = config.model.d_model, config.model.d_ff
    return [(d, d)] * 4 + [(d, f)] * 2 + [(f, d)]


def weight_shapes(config: Config) -> list[tuple[int, ...]]:
    """Weights of one block's seven linears: (d_out, d_in), or CoLA's (r, d_in) and (d_out, r)."""
    if config.method.name == "cola":
        r = config.rank
        return [shape for d_in, d_out in linear_shapes(config) for shape in ((r, d_in), (d_out, r))]
    return [(d_out, d_in) for d_in, d_out in linear_shapes(config)]


def block_shapes(config: Config) -> list[tuple[int, ...]]:
    """Every parameter of one block: linears and two norms."""
    return [*weight_shapes(config), *[(config.model.d_model,)] * 2]


def root_shapes(config: Config) -> list[tuple[int, ...]]:
    """Every parameter outside of the blocks: embedding, last norm, head."""
    V, d = config.model.vocab_size, config.model.d_model
    return [(V, d), (d,), (V, d)]


def linear_parameters(config: Config) -> int:
    """Weights of the seven linears of one block: d_in d_out each, or r (d_in + d_out) for CoLA."""
    return sum(map(prod, weight_shapes(config)))


def parameters(config: Config) -> int:
    """Parameters of the whole model: untied embedding and head, blocks, norms; no biases."""
    block, root = (sum(map(prod, f(config))) for f in (block_shapes, root_shapes))
    return config.model.n_layers * block + root


def forward_flops_per_token(config: Config) -> float:
    """FLOPs of a forward pass for one position of a sequence of `train.sequence_length`.

    Two for each weight of linears and head, and 4 n d a layer for attention's two products,
    counted over the whole n x n square as is the custom.
    Norms, activations and the loss are left out.
    """
    model, n = config.model, config.train.sequence_length
    block = 2 * linear_parameters(config) + 4 * n * model.d_model
    return model.n_layers * block + 2 * model.vocab_size * model.d_model


def training_flops_per_token(config: Config) -> float:
    """Forward and backward: three times the forward pass; recomputation is not counted."""
    return 3 * forward_flops_per_token(config)


def block_backward_flops_per_token(config: Config, fused: bool) -> int:
    """FLOPs of one block's backward pass for one position, recomputation included.

    Four for each weight of the linears, and five products for attention, whose kernel computes
    the scores again. `fused`: with Triton kernels, whose MLP never keeps what is F wide.
    """
    model, n = config.model, config.train.sequence_length
    return (
        4 * linear_parameters(config)
        + 10 * n * model.d_model
        + block_recomputed_flops_per_token(config, fused)
    )


def block_recomputed_flops_per_token(config: Config, fused: bool) -> int:
    """FLOPs that one block's backward pass does again for one position (docs/recomputation.md).

    A recomputed region ends with what its last product needs: that product is not run.
    """
    model, n, policy = config.model, config.train.sequence_length, config.recompute.name
    d, f = model.d_model, model.d_ff
    attention = 4 * n * d
    if config.method.name != "cola":
        last = 2 * d * f
        return 2 * linear_parameters(config) + attention - last if policy == "full" else 0
    r = config.rank
    qkv_up, gate_up, down_up = 6 * d * r, 4 * f * r, 2 * d * r
    in_mlp_op = gate_up if fused else 0  # the fused op does so under every policy
    if policy == "none":
        return in_mlp_op
    if policy == "full":
        everything = 2 * linear_parameters(config) + attention
        return everything + in_mlp_op if fused else everything - down_up
    return qkv_up + gate_up + (attention if policy == "cola_m" else 0)


def block_saved_bytes_per_token(config: Config, fused: bool, element: int) -> int:
    """Bytes that one block keeps for its backward pass, for one position; what two ops share is
    counted once. Its output counts to the next block, as that one's input.

    `element`: bytes of the compute dtype. Norms keep one fp32 number, attention one a head.
    """
    model, policy = config.model, config.recompute.name
    d, f = model.d_model, model.d_ff
    norms, log_sum = 2 * 4, 4 * model.n_heads
    if policy == "full":
        return element * d
    if config.method.name != "cola":
        # x, norm(x), the joint q/k/v (v is a view of it), rotated q and k, attention's output
        # twice (x + attention), its norm; gate and up, and their gated product
        return element * (10 * d + 3 * f) + norms + log_sum
    r = config.rank
    kept = 2 * d + 7 * r
    if policy == "cola_m":
        return element * kept
    if policy == "light":
        return element * (kept + d) + log_sum
    # both norms' outputs, q, k, v, attention's output
    kept += 6 * d
    if not fused:
        kept += 3 * f + (7 * r if config.method.activation != "full_rank" else 0)
    return element * kept + norms + log_sum
