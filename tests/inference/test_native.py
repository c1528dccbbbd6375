"""A token's step in compiled C++, beside torch's in bf16 and the model in fp32."""

import pytest
import torch
from helpers import make_config
from torch import Tensor

from cola_train.errors import UserError
from cola_train.inference import native
from cola_train.inference.caches import KeyValueCache, make_cache
from cola_train.inference.prepare import prepare
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.model.padding import remove_padding

CPU = torch.device("cpu")
METHODS = ["method=full", *(f"method=cola method.activation={of}" for of in
           ("low_rank", "both", "full_rank")),
           "method=cola method.ranks={q:7,k:32,up:40,down:48}",
           "method=full model.qk_norm=true"]  # fmt: skip


def tiny(method: str) -> Llama:
    """Its weights are numbers of bf16; odd widths, heads of 32."""
    config = make_config(
        *method.split(), "model.n_layers=2", "model.d_model=96", "model.d_ff=133",
        "model.n_heads=3", "model.vocab_size=301", "train.sequence_length=24",
        "train.precision=fp32",
    )  # fmt: skip
    model = build_model(config, build_method(config, CPU), CPU)
    model.to_empty(device=CPU)
    initialise(model, 0)
    remove_padding(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):  # which begin as ones
            parameter.data.uniform_(0.2, 1, generator=torch.Generator().manual_seed(0))
        parameter.data = (parameter * 2).bfloat16().float()
    return model


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_a_step_is_as_near_to_fp32_as_torchs(method: str) -> None:
    """Three tokens at once, then one by one to the cache's end, in two caches."""
    plain = prepare(tiny(method), torch.bfloat16, plain=True)
    if (reason := native.unavailable(plain)) is not None:
        pytest.skip(reason)
    tokens = torch.randint(301, (1, 24), generator=torch.Generator().manual_seed(0))
    exact, step = tiny(method)(tokens), native.Native(plain)
    for _ in range(2):
        error = distance(one_by_one(step, plain, tokens), exact)
        assert error <= 2 * distance(one_by_one(plain, plain, tokens), exact) < 0.2


def one_by_one(step: object, model: Llama, tokens: Tensor) -> Tensor:
    cache = KeyValueCache(model, 1, 24)
    parts = [step(part, cache=cache, last=3) for part in tokens[:, :3].split(3, 1)]  # type: ignore[operator]
    for token in tokens[:, 3:].split(1, 1):
        parts.append(step(token, cache=cache, last=1).clone())  # type: ignore[operator]
    assert cache.filled == 24
    return torch.cat(parts, 1).float()


def distance(y: Tensor, exact: Tensor) -> float:
    return float((y - exact).norm() / exact.norm())


@torch.inference_mode()
def test_what_it_does_not_know_is_the_models() -> None:
    """Several rows, another cache, one longer than the model; and what it cannot run is refused."""
    plain = prepare(tiny("method=cola"), torch.bfloat16, plain=True)
    if native.unavailable(plain) is None:
        step = native.Native(plain)
        for kind, rows, length in (("kv", 2, 8), ("latent", 1, 8), ("kv", 1, 4096)):
            tokens = torch.arange(4 * rows).view(rows, 4)
            one, other = (make_cache(kind, plain, rows, length) for _ in range(2))
            for part in tokens.split([3, 1], 1):
                assert step(part, cache=one, last=1).equal(plain(part, cache=other, last=1))
    with pytest.raises(UserError, match=r"native: it is for bf16 .*float32"):
        native.Native(prepare(tiny("method=full"), torch.float32, plain=True))
