"""The decoder against `transformers`, the paper's sizes, and its own promises."""

import math

import pytest
import torch
from cola_kernels import composed
from helpers import PAPER_PARAMETERS, meta_model, real_model
from torch.utils.flop_counter import FlopCounterMode

from cola_train import costs
from cola_train.model.context import document_starts
from cola_train.model.init import initialise
from cola_train.model.linear import AutoEncoders
from cola_train.model.mlp import MLP, AutoEncoderMLP
from cola_train.model.padding import remove_padding
from cola_train.model.tap import observing

TINY = ("model.d_model=32", "model.d_ff=40", "model.n_layers=2", "model.vocab_size=300")


@pytest.mark.parametrize("size", PAPER_PARAMETERS)
@pytest.mark.parametrize("method", ["full", "cola"])
def test_parameters_are_the_papers(config_of, size, method):
    config = config_of(f"model={size}", f"method={method}")
    model = meta_model(config)
    remove_padding(model)
    expected = PAPER_PARAMETERS[size][method == "cola"]
    assert sum(p.numel() for p in model.parameters()) == expected
    assert costs.parameters(config) == expected


@pytest.mark.parametrize("size", PAPER_PARAMETERS)
@pytest.mark.parametrize("method", ["full", "cola"])
def test_flops_are_those_counted(config_of, size, method):
    config = config_of(f"model={size}", f"method={method}")
    model = meta_model(config)
    remove_padding(model)
    tokens = torch.zeros(1, config.train.sequence_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == tokens.numel() * costs.forward_flops_per_token(config)
    assert counter.get_total_flops() == tokens.numel() * costs.training_flops_per_token(config)


def test_full_rank_equals_transformers(config_of):
    transformers = pytest.importorskip("transformers")
    config = config_of("method=full", *TINY)
    ours, unpadded = real_model(config), real_model(config)
    remove_padding(unpadded)  # the same weights, in the shapes of theirs
    shape = config.model
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=False,
        )
    )
    weights = {
        "model.embed_tokens.weight": ours.embedding.weight,
        "lm_head.weight": ours.head.weight,
    }
    for i, layer in enumerate(unpadded.layers):
        prefix = f"model.layers.{i}."
        for name in "qkv":
            weights[f"{prefix}self_attn.{name}_proj.weight"] = getattr(layer.attention.qkv, name)
        weights[f"{prefix}self_attn.o_proj.weight"] = layer.attention.out.o
        weights[f"{prefix}mlp.gate_proj.weight"] = layer.mlp.gate_up.gate
        weights[f"{prefix}mlp.up_proj.weight"] = layer.mlp.gate_up.up
        weights[f"{prefix}mlp.down_proj.weight"] = layer.mlp.down.down
    missing = theirs.load_state_dict(weights, strict=False).missing_keys
    assert all("norm" in name for name in missing)  # ones on both sides
    tokens = torch.randint(0, 300, (3, 19), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    loss = ours(tokens[:, :-1], tokens[:, 1:].contiguous()) / (3 * 18)
    torch.testing.assert_close(loss, theirs(tokens, labels=tokens).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("placement", ["low_rank", "both", "full_rank"])
def test_placements_of_the_nonlinearity(config_of, placement):
    config = config_of(f"method.activation={placement}", "method.rank=8", *TINY)
    mlp = real_model(config).layers[0].mlp
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    silu = torch.nn.functional.silu

    def low_rank(a, b, v):  # written out from the paper's definition
        z = v @ a.T
        return (silu(z) if placement != "full_rank" else z) @ b.T

    gate = low_rank(mlp.gate_A, mlp.gate_B, x)
    up = low_rank(mlp.up_A, mlp.up_B, x)
    middle = (gate if placement == "low_rank" else silu(gate)) * up
    residual = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    expected = residual + low_rank(mlp.down_A, mlp.down_B, middle)
    torch.testing.assert_close(mlp(x, residual), expected, rtol=1e-5, atol=1e-6)


def test_init_is_the_official_codes(config_of):
    config = config_of("model=60m", "model.n_layers=1")
    model = real_model(config)
    r, d, f = 128, 512, 1376
    layer = model.layers[0]
    for weight, d_out in (
        (layer.attention.qkv.k_A, d),
        (layer.attention.out.o_B, d),
        (layer.mlp.gate_A, f),
        (layer.mlp.up_B, f),
        (layer.mlp.down_A, f),
    ):
        std = (r * (d + d_out)) ** -0.25
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())
    product = layer.mlp.gate_B @ layer.mlp.gate_A
    assert product.std().item() == pytest.approx((d + f) ** -0.5, rel=0.02)
    wide = real_model(config_of("model=60m", "model.n_layers=1", "model.embedding_std=0.5"))
    for weight, std in (
        (model.embedding.weight, 0.02), (model.head.weight, 0.02),
        (wide.embedding.weight, 0.5), (wide.head.weight, 0.02),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize("method", ["full", "cola"])
def test_init_fills_everything(config_of, method):
    config = config_of(f"method={method}", *TINY)
    model = meta_model(config).to_empty(device="cpu")
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        tensor.data.fill_(math.nan)
    initialise(model, 0)
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_different_layers_and_seeds_get_different_weights(config_of):
    model = real_model(config_of(*TINY))
    again = real_model(config_of(*TINY))
    other = real_model(config_of("seed=1", *TINY))
    first, second = (layer.attention.qkv.q_A for layer in model.layers)
    assert torch.equal(first, again.layers[0].attention.qkv.q_A)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other.layers[0].attention.qkv.q_A)
    assert not torch.equal(first, model.layers[0].attention.qkv.k_A)


@pytest.mark.parametrize("method", ["full", "cola"])
def test_packed_documents_do_not_see_each_other(config_of, method):
    model = real_model(config_of(f"method={method}", *TINY))
    lengths = [5, 1, 9, 4]
    tokens = torch.randint(0, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    together = model(tokens, documents_BT=documents)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(tokens)[0, 5:], alone[0, 5:], atol=1e-4)


def test_document_starts_for_flash():
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    starts = document_starts(documents)
    assert starts.tolist() == [0, 2, 5, 6, 8, 10] and starts.dtype == torch.int32


def test_mlp_takes_any_projections():
    """Over auto-encoders, the plain MLP is CoLA's fused one."""
    ranks = {"gate": 3, "up": 3, "down": 3}
    projections = lambda d_in, d_outs: AutoEncoders(d_in, d_outs, ranks, True, composed)  # noqa: E731
    plain = MLP(8, 12, True, projections, composed)
    fused = AutoEncoderMLP(8, 12, ranks, activation=True, gate_silu=True, ops=composed)
    for name, weight in plain.named_parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
        fused.get_parameter(name.split(".")[-1]).data.copy_(weight)
    x, residual = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(x, residual), fused(x, residual))


def test_an_observer_sees_every_rank_r_vector(config_of):
    config = config_of("method.rank=5", *TINY)
    model, seen = real_model(config), []
    tokens = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    unseen = model(tokens)
    with observing(lambda name, x, joined: seen.append((name, x, joined))):
        logits = model(tokens)
    z = [(joined.parts(x), x.shape[-1]) for name, x, joined in seen if name == "z"]
    shapes = [({of: tuple(part.shape) for of, part in parts.items()}, width) for parts, width in z]
    of_block = [
        (dict.fromkeys(names.split(), (2, 7, 5)), 16 * len(names.split()))  # 16: as stored
        for names in ("q k v", "o", "gate up", "down")
    ]
    assert shapes == of_block * config.model.n_layers
    names = [name for name, *_ in seen]
    assert names == "residual z q k z z z".split() * config.model.n_layers
    assert torch.equal(logits, unseen) and torch.equal(model(tokens), unseen)
    assert len(seen) == 7 * config.model.n_layers  # and none once it is off
