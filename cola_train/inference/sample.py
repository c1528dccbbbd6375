"""Sampling text from a model in training."""

from collections.abc import Sequence
from functools import partial

import torch

from cola_train.engines.base import Engine
from cola_train.inference.caches import make_cache
from cola_train.inference.generate import next_tokens
from cola_train.inference.sampling import Sampler, Sampling


def sample(
    engine: Engine,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    vocab_size: int,
    seed: int,
    dtype: torch.dtype,
) -> list[int]:
    """Continue `prompt` (token ids, at least one) by `new_tokens` tokens, or to the model's length,
    if that comes first; the new ones only. Of a prompt as long as that, the last half is read.

    All processes call it together. Only ids below `vocab_size` (the tokenizer's) are drawn. dtype:
    what the model computes in.

    Raises:
        TrainingError: the model has diverged.
    """
    length = engine.model.max_length
    read = prompt if len(prompt) < length else prompt[-(length // 2) :]
    steps = min(new_tokens, length - len(read))
    sampler = Sampler(Sampling(seed=seed), [read], vocab_size, steps, engine.device)
    new_cache = partial(make_cache, "kv", engine.model, dtype=dtype)
    drawn = next_tokens(engine.eval_model(), [read], sampler, new_cache, steps)
    return [token for (token,) in drawn]
