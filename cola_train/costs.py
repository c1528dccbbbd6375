"""Parameters and FLOPs of a configured model: one truth for MFU, plans, benchmarks and the docs.

A method says what one block costs (`methods/costs.py`); embedding, last norm and head are here.
"""

from cola_train.config.schema import Config
from cola_train.methods.costs import BlockCost, Weight


def block_cost(config: Config, fused: bool = False) -> BlockCost:
    """Of one block of `config`'s model; `fused`: on Triton kernels."""
    length, policy = config.train.sequence_length, config.recompute.name
    return config.method.block_cost(config.model, length, policy, fused)


def root_weights(config: Config) -> tuple[Weight, ...]:
    """Every parameter outside of the blocks: embedding, last norm, head."""
    V, d = config.model.vocab_size, config.model.d_model
    embedding = head = Weight((V, d), in_block=False)
    return embedding, Weight((d,), in_block=False), head


def weights(config: Config) -> tuple[Weight, ...]:
    """Every parameter: untied embedding and head, blocks, norms; no biases."""
    return root_weights(config) + block_cost(config).weights * config.model.n_layers


def parameters(config: Config, trained: bool = False) -> int:
    """Elements of all parameters, or of those that are trained."""
    return sum(w.elements for w in weights(config) if w.trainable or not trained)


def micro_batch_flops(config: Config) -> int:
    """What comes once a micro-batch beside the FLOPs of its tokens."""
    return config.model.n_layers * block_cost(config).pass_flops.total


def forward_flops_per_token(config: Config) -> int:
    """FLOPs of a forward pass for one position of a sequence of `train.sequence_length`.

    Norms, activations and the loss are left out, and so is what comes once a micro-batch.
    """
    model = config.model
    head = 2 * model.vocab_size * model.d_model
    return model.n_layers * block_cost(config).forward_flops + head


def training_flops_per_token(config: Config) -> int:
    """Forward and backward, as MFU counts them: nothing that is computed a second time, neither
    by a recompute policy nor by attention's kernel, whose backward pass is four matmuls here; and
    nothing that comes once a micro-batch (`BlockCost.pass_flops`), which larger ones need less
    of."""
    model, block = config.model, block_cost(config)
    scores = 2 * config.train.sequence_length * model.d_model
    head = 4 * model.vocab_size * model.d_model
    backward = model.n_layers * (block.backward_flops - scores) + head
    return forward_flops_per_token(config) + backward
