"""A prepared model, whose weights lie joined and packed, computes what it did."""

import pytest
import torch
from helpers import real_model, values_config

from cola_train.inference import packed
from cola_train.inference.caches import KeyValueCache
from cola_train.inference.prepare import prepare
from cola_train.model.llama import Llama
from cola_train.model.padding import remove_padding

METHODS = [
    {"name": "full"},
    {"name": "cola", "activation": "low_rank"},
    {"name": "cola", "activation": "full_rank"},
    {"name": "cola", "ranks": {"k": 5, "gate": 17}},
    {"name": "low_rank"},
    {"name": "lora"},  # is used folded: without twins it is slower, and the same
]


def tiny(method: dict[str, object]) -> Llama:
    model = real_model(values_config(method=method))
    remove_padding(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
@pytest.mark.parametrize("plain", [False, True])
def test_prepared_weights_give_the_same_logits(method: dict[str, object], plain: bool) -> None:
    model = tiny(method)
    tokens = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(0))
    expected, last = model(tokens), model(tokens, last=1)
    ready = prepare(tiny(method), torch.float32, plain)
    torch.testing.assert_close(ready(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ready(tokens, last=1), last, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in ready.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("method", ["full", "cola"])
def test_bf16_is_as_close_as_torch(method: str) -> None:
    """Against fp32, at most twice the error of the same model in bf16 without cache or packing."""
    model = tiny({"name": method})
    tokens = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    exact = model(tokens)
    plain = tiny({"name": method})
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16()
    ready = prepare(tiny({"name": method}), torch.bfloat16)
    cache = KeyValueCache(ready, 3, 20)
    cached = torch.cat([ready(part, cache=cache) for part in tokens.split([9, 1, 3, 7], 1)], 1)
    assert cached.dtype == torch.bfloat16
    error, usual = ((logits - exact).norm() for logits in (cached, plain(tokens)))
    assert 0 < error <= 2 * usual


def test_packed_weights_hold_what_they_are_packed_of() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if packed.can_pack(torch.device("cpu"), dtype):
            weight = torch.randn(24, 40, dtype=dtype)
            assert torch.equal(packed.pack(weight).to_dense(), weight)
