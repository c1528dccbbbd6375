"""Every kind of cache computes what a pass over all positions does, and holds what plans count."""

import pytest
import torch
from helpers import real_model, values_config

from cola_train.errors import UserError
from cola_train.inference.caches import CACHES, kinds, make_cache
from cola_train.inference.prepare import prepare
from cola_train.model.llama import Llama
from cola_train.model.padding import remove_padding

STARTS = torch.tensor([0, 4, 7])
COLA = [{"name": "cola", "activation": where} for where in ("low_rank", "both", "full_rank")]
RANKS = {"name": "cola", "ranks": {"q": 3, "v": 5, "up": 9}}
METHODS = [{"name": "full"}, *COLA, RANKS, {"name": "low_rank"}, {"name": "low_rank", "dlr": 0.5}]


def tiny(method: dict[str, object]) -> Llama:
    model = real_model(values_config(method=method))
    remove_padding(model)
    return model.eval().requires_grad_(False)


def of_method(method: dict[str, object]) -> str:
    return "-".join(map(str, method.values()))


@pytest.mark.parametrize("method", METHODS, ids=of_method)
def test_cached_logits_are_those_of_each_row_alone(method: dict[str, object]) -> None:
    """With padding on the left and without, packed and not, growing and static."""
    model = tiny(method)
    tokens = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    alone = [model(tokens[i : i + 1, start:]) for i, start in enumerate(STARTS.tolist())]
    whole = model(tokens)
    for pack in (False, True):
        if pack:
            model = prepare(model, torch.float32)
        for kind in kinds(model):
            for static in (False, True):
                cache = make_cache(kind, model, 3, 20, STARTS, static=static)
                parts = [model(part, cache=cache) for part in tokens.split([9, 1, 3, 1, 6], dim=1)]
                cached = torch.cat(parts, dim=1)
                assert cached.isfinite().all()
                for row, start, expected in zip(cached, STARTS.tolist(), alone, strict=True):
                    torch.testing.assert_close(row[None, start:], expected, atol=1e-5, rtol=1e-5)
                cache = make_cache(kind, model, 3, 24, static=static)
                parts = [model(part, cache=cache) for part in tokens.split([5, *[1] * 15], dim=1)]
                torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [{"name": "full"}, COLA[0], RANKS], ids=of_method)
def test_what_is_kept_is_what_the_method_says(method: dict[str, object]) -> None:
    config = values_config(method=method)
    costs = config.method.caches(config.model)
    model = tiny(method)
    assert kinds(model) == list(costs)
    for kind, cost in costs.items():
        cache = make_cache(kind, model, batch=3, length=11, dtype=torch.bfloat16)
        held = sum(kept.nbytes for kept in cache.kept)
        assert held == 2 * cost.elements * config.model.n_layers * 3 * 11


def test_a_cache_that_a_model_has_not_is_refused() -> None:
    for kind, why in (("latent", "; its projections have no bottleneck"), ("paged", "")):
        with pytest.raises(UserError) as refused:
            make_cache(kind, tiny({"name": "full"}), 1, 8)
        assert refused.value.problems == (
            f"cache: {kind!r} is not one of this model's, which are kv{why}",
        )
    with pytest.raises(UserError, match=f"which are {', '.join(CACHES)}$"):
        make_cache("paged", tiny(COLA[0]), 1, 8)
