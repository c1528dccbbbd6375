"""Variants of CoLA's auto-encoders: other functions than SiLU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import micro_batches, real_model, refusal, values_config

from benchmarks.count import count_block
from cola_train import costs
from cola_train.errors import UserError
from cola_train.inference.caches import make_cache
from cola_train.inference.prepare import prepare
from cola_train.methods.low_rank.layers import expansion
from cola_train.model.padding import paddings, remove_padding

SIGMAS = {
    "relu2": lambda z: z.clamp(min=0) ** 2,
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
}


def config_of(**method):
    return values_config(method={"name": "cola", **method})


@pytest.mark.parametrize("name", SIGMAS)
def test_sigma_is_on_every_bottleneck(name):
    """Gradients too, by the equation in plain torch; and through a cache of bottlenecks."""
    sigma, model = SIGMAS[name], real_model(config_of(sigma=name))
    block = model.layers[0]
    qkv, mlp = block.attention.qkv, block.mlp
    x, residual = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0)) * 3

    def by_hand(module, x, name):
        A, B = (getattr(module, f"{name}_{kind}") for kind in "AB")
        return sigma(x @ A.t()) @ B.t()

    of_mlp = F.silu(by_hand(mlp, x, "gate")) * by_hand(mlp, x, "up")
    expected = [*(by_hand(qkv, x, of) for of in "qkv"), residual + by_hand(mlp, of_mlp, "down")]
    seen = [*qkv(x), mlp(x, residual)]
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    weights = [w for m in (qkv, mlp) for w in m.parameters()]
    losses = (sum(y.square().sum() for y in ys) for ys in (seen, expected))
    gradients = [torch.autograd.grad(loss, weights) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    tokens = micro_batches(0)[0].inputs
    with torch.no_grad():
        for kind in ("kv", "latent"):
            cache = make_cache(kind, model, *tokens.shape)
            torch.testing.assert_close(model(tokens, cache=cache), model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SIGMAS)
def test_bytes_with_another_sigma_are_those_counted(name):
    pytest.importorskip("triton")
    for policy in ("none", "cola_m"):
        config = values_config(method={"name": "cola", "sigma": name}, recompute={"name": policy})
        for kernels in ("torch", "triton"):
            cost = costs.block_cost(config, fused=kernels == "triton")
            assert count_block(config, kernels).saved_bytes == cost.saved_bytes(4)


def test_sigma_is_refused_where_it_cannot_be():
    (problem,) = refusal(method={"name": "cola", "sigma": "gelu", "activation": "full_rank"})
    assert problem.startswith("method.sigma: gelu has no effect")
    config = config_of(sigma="relu2")
    with pytest.raises(UserError, match=r"method\.sigma: a model that has it cannot be exported"):
        config.method.exported(config.model)


def test_factors_begin_as_asked():
    """Twice as large, B with what DLR adds to B z, whatever is stored beyond a rank of 5."""
    plain, begun = (
        real_model(config_of(rank=5, **of)) for of in ({}, {"init_scale": 2.0, "dlr_init": 0.7})
    )
    remove_padding(plain)
    pads = paddings(begun)
    factors = [name for name in pads if name[-2:] in ("_A", "_B")]
    assert len(factors) == 2 * 2 * 7
    for name in factors:
        expected = 2 * plain.get_parameter(name)
        if name.endswith("_B"):
            expected = expected + expansion(torch.eye(5), len(expected), 0.7).t()
        stored = begun.get_parameter(name)
        torch.testing.assert_close(stored, pads[name].pad(expected), rtol=0, atol=1e-6)


def test_a_beginning_is_no_part_of_what_a_checkpoint_must_agree_in():
    of = [config_of(), config_of(dlr_init=0.5, init_scale=0.5)]
    assert of[0].method.identity(of[0].model) == of[1].method.identity(of[1].model)


def lax_config(begin, **groups):
    method = {"name": "cola", "rank": 5, "lax": begin}
    return values_config(method=method, model={"n_layers": 3}, **groups)


def test_lax_adds_the_bottleneck_of_the_block_before():
    """That is A x as it is there, without what was added to it."""
    model = real_model(lax_config(0.3))
    inputs, outputs, before = [], [], None
    for number, block in enumerate(model.layers):
        with torch.no_grad():
            block.attention.qkv.gates.copy_(torch.tensor([0.5, -1.0, 2.0]) * (number + 1))
        block.attention.qkv.register_forward_hook(lambda _, args, y: inputs.append(args[0]))
        block.attention.qkv.register_forward_hook(lambda _, args, y: outputs.append(y))
    model(micro_batches(0)[0].inputs)
    for block, x, ys in zip(model.layers, inputs, outputs, strict=True):
        qkv = block.attention.qkv
        own = [x @ getattr(qkv, f"{name}_A").t() for name in "qkv"]
        for i, (name, y) in enumerate(zip("qkv", ys, strict=True)):
            z = own[i] if before is None else own[i] + qkv.gates[i] * before[i]
            expected = F.silu(z) @ getattr(qkv, f"{name}_B").t()
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        before = own


def test_lax_begins_as_cola_and_trains_all_gates_but_the_first_blocks():
    config = lax_config(0.0)
    model = real_model(config)
    plain = real_model(replace(config, method=replace(config.method, lax=None)))
    batch = micro_batches(0)[0]
    loss, other = (of(batch.inputs, batch.targets) for of in (model, plain))
    assert loss.item() == other.item()
    loss.backward()
    gates = {name: of.grad for name, of in model.named_parameters() if name.endswith("gates")}
    assert len(gates) == 3 * 3
    for name, gradient in gates.items():
        expected = gradient == 0 if name.startswith("layers.0.") else gradient != 0
        assert bool(expected.all()), name
    held = sum(weight.numel() for weight in model.parameters())
    assert held == sum(weight.stored.elements for weight in costs.weights(config))
    assert count_block(config).saved_bytes == costs.block_cost(config).saved_bytes(4)


@torch.no_grad()
def test_lax_generates_what_it_computes():
    model, tokens = real_model(lax_config(0.5)), micro_batches(0)[0].inputs
    expected = model(tokens)
    for kind in ("kv", "absorbed"):
        prepared = prepare(real_model(lax_config(0.5)), torch.float32)
        cache = make_cache(kind, prepared, *tokens.shape)
        parts = [prepared(part, cache=cache) for part in tokens.split([20, 1, 11], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-4)


def test_lax_is_refused_where_blocks_are_taken_by_themselves():
    method = {"name": "cola", "lax": 0.0}
    (problem,) = refusal(method=method, recompute={"name": "cola_m"})
    assert problem.startswith("method.lax: recompute=cola_m would take blocks")
