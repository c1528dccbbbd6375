"""Queries and keys that are normalised: against the equation, through caches, costs, kernels."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers import METHOD_NAMES, meta_model, micro_batches, real_model, values_config

from benchmarks.count import count_block
from cola_train import costs
from cola_train.inference.caches import kinds, make_cache
from cola_train.inference.prepare import prepare
from cola_train.methods import METHODS
from cola_train.methods.launches import Pass, Work
from cola_train.model.attention import rotary_for
from cola_train.model.context import AttentionContext
from cola_train.model.padding import remove_padding


def config_of(**groups):
    return values_config(model={"qk_norm": True}, **groups)


def model_of(config):
    """Its scales are not what they begin with."""
    model = real_model(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def test_attention_is_that_of_normalised_heads():
    model = model_of(config_of(method={"name": "full"}))
    x = model.embedding(micro_batches(0)[0].inputs) * 50
    attention, T, eps = model.layers[0].attention, x.shape[1], model.config.norm_eps
    seen = []
    attention.register_forward_hook(lambda _, args, y: seen.append((args, y)))
    model.layers[0].attend(x, context_of(model, x))
    [((h, _, residual), y)] = seen
    heads = {
        name: (h @ getattr(attention.qkv, name).t()).unflatten(-1, (-1, attention.head_dim))
        for name in "qkv"
    }
    cos, sin = model.rotary[:, :T, None]
    for name in "qk":
        of = heads[name]
        of = of * (of.square().mean(-1, keepdim=True) + eps).rsqrt()
        of = of * getattr(attention, f"{name}_norm").weight
        first, second = of.chunk(2, dim=-1)
        heads[name] = of * cos + torch.cat([-second, first], dim=-1) * sin
    q, k, v = (of.transpose(1, 2) for of in heads.values())
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(y, residual + attended @ attention.out.o.t(), rtol=0, atol=1e-5)


def context_of(model, x):
    return AttentionContext(rotary_for(model.rotary, x), model.make_mask(None, x))


@torch.no_grad()
@pytest.mark.parametrize("method", ["full", "cola"])
def test_every_cache_gives_the_same(method):
    """Growing and static; with weights as they are and as generation lays them out."""
    config = config_of(method={"name": method})
    model = model_of(config).eval()
    remove_padding(model)
    tokens = micro_batches(0)[0].inputs
    expected = model(tokens)
    for pack in (False, True):
        if pack:
            model = prepare(model, torch.float32)
        assert kinds(model) == list(config.method.caches(model.config))
        for kind, static in product(kinds(model), (False, True)):
            cache = make_cache(kind, model, *tokens.shape, static=static)
            parts = [model(part, cache=cache) for part in tokens.split([20, 1, 11], dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_parameters_and_bytes_are_those_counted(method):
    for policy in METHODS[method].policies:
        config = config_of(method={"name": method}, recompute={"name": policy})
        model = meta_model(config)
        held = sum(weight.numel() for weight in model.parameters())
        assert held == sum(weight.stored.elements for weight in costs.weights(config))
        assert count_block(config).saved_bytes == costs.block_cost(config).saved_bytes(4)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_steps_kernels_are_those_of_the_norms_too(method):
    """Two more forward, which any recomputation runs again, and two each backward."""
    config = config_of(method={"name": method})
    n, d = 64, config.model.d_model
    for policy in METHODS[method].policies:
        without = Work(n, 32, policy, fused=False, compiled=False)
        work = replace(without, qk_norm=True)
        counts = [Counter(config.method.block_launches(config.model, of)) for of in (work, without)]
        forward, backward = 2 * n * d, 3 * n * d
        again = 0 if policy == "none" else 2
        more = {forward: 2 + again + 2, backward: 2}  # the scale's gradient moves as much as a norm
        assert counts[0] - counts[1] == {Pass(k, "norms"): of for k, of in more.items()}
