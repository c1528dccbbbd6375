"""Parameters and FLOPs from a configuration: one truth for MFU, benchmarks and the docs.

Symbols: d = d_model, f = d_ff, r = rank, n = sequence length, V = vocabulary, L = layers.
"""

from cola_train.config import Config


def linear_shapes(config: Config) -> list[tuple[int, int]]:
    """(d_in, d_out) of the seven linears of one block: q, k, v, o, gate, up, down."""
    d, f = config.model.d_model, config.model.d_ff
    return [(d, d)] * 4 + [(d, f)] * 2 + [(f, d)]


def linear_parameters(config: Config) -> int:
    """Weights of the seven linears of one block: d_in d_out each, or r (d_in + d_out) for CoLA."""
    if config.method.name == "cola":
        return sum(config.rank * (d_in + d_out) for d_in, d_out in linear_shapes(config))
    return sum(d_in * d_out for d_in, d_out in linear_shapes(config))


def parameters(config: Config) -> int:
    """Parameters of the whole model: untied embedding and head, blocks, norms; no biases."""
    model = config.model
    block = linear_parameters(config) + 2 * model.d_model
    return 2 * model.vocab_size * model.d_model + model.n_layers * block + model.d_model


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
