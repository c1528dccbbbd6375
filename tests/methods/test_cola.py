"""Variants of CoLA's auto-encoders: other functions than SiLU."""

import pytest
import torch
import torch.nn.functional as F
from helpers import micro_batches, real_model, refusal, values_config

from benchmarks.count import count_block
from cola_train import costs
from cola_train.errors import UserError
from cola_train.inference.caches import make_cache
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
    with pytest.raises(UserError, match=r"method\.sigma: a model with relu2 cannot be exported"):
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
