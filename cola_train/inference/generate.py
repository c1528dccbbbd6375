"""Sampling text from a model in training."""

import torch

from cola_train.engines.base import Engine
from cola_train.errors import TrainingError


@torch.no_grad()
def sample(
    engine: Engine,
    prompt: list[int],
    new_tokens: int,
    *,
    max_length: int,
    vocab_size: int,
    seed: int = 0,
    temperature: float = 0.8,
    top_k: int = 50,
) -> list[int]:
    """Continue `prompt` (token ids, at least one) by `new_tokens` tokens; the new ones only.

    All processes call it together. The context is the last `max_length` tokens; only ids below
    `vocab_size` (the tokenizer's) are drawn.

    Raises:
        TrainingError: the model has diverged.
    """
    generator = torch.Generator().manual_seed(seed)
    model = engine.eval_model()
    tokens = list(prompt)
    for _ in range(new_tokens):
        context = torch.tensor([tokens[-max_length:]], device=engine.device)
        logits = model(context)[0, -1, :vocab_size].float().cpu() / temperature
        if not logits.isfinite().all():
            raise TrainingError("training diverged: the logits are not finite; lower optim.lr")
        top = logits.topk(min(top_k, vocab_size))
        choice = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
        tokens.append(int(top.indices[choice]))
    return tokens[len(prompt) :]
