"""Generation with a cache computes what a pass over all positions does."""

import pytest
import torch
from helpers import make_config

from cola_train.inference.caches import KeyValueCache
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama, build_model
from cola_train.parallel.compile import compile_blocks

CPU = torch.device("cpu")


def tiny(method: str) -> Llama:
    config = make_config(
        f"method={method}", "model.n_layers=2", "model.d_model=32", "model.d_ff=37",
        "model.n_heads=2", "model.vocab_size=300", "train.sequence_length=24",
        "train.precision=fp32",
    )  # fmt: skip
    model = build_model(config, build_method(config, CPU), CPU)
    model.to_empty(device=CPU)
    initialise(model, 0)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("method", ["full", "cola"])
def test_cached_logits_are_those_of_a_whole_pass(method: str) -> None:
    model, generator = tiny(method), torch.Generator().manual_seed(0)
    tokens = torch.randint(300, (3, 20), generator=generator)
    starts = torch.tensor([0, 4, 7])
    cache = KeyValueCache(model, batch=3, length=20, starts_B=starts)
    parts = [model(part, cache=cache) for part in tokens.split([9, 1, 3, 1, 6], dim=1)]
    cached = torch.cat(parts, dim=1)
    for row, start in enumerate(starts.tolist()):
        alone = model(tokens[row : row + 1, start:])
        torch.testing.assert_close(cached[row : row + 1, start:], alone)
    assert cached.isfinite().all()


def test_rows_go_on_beside_one_that_has_come_to_the_models_length() -> None:
    model, tokens = tiny("full"), torch.arange(2 * 30).view(2, 30)
    cache = KeyValueCache(model, batch=2, length=30, starts_B=torch.tensor([0, 8]))
    logits = model(tokens, cache=cache)
    torch.testing.assert_close(logits[1:, 8:], model(tokens[1:, 8:])[:, :22])
    assert logits.shape[1] == 30 > model.max_length == 24


def test_blocks_in_training_are_not_compiled_for_each_token(monkeypatch):
    """`train.sample` at the end of a run with train.compile."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled.append)
    model = tiny("cola")
    compile_blocks(model)
    cache = KeyValueCache(model, batch=1, length=20)
    assert model(torch.zeros(1, 1, dtype=torch.int64), cache=cache).isfinite().all()
    assert not compiled
    with pytest.raises(TypeError):  # as the stand-in for compiled code takes no context
        model(torch.zeros(1, 1, dtype=torch.int64))
