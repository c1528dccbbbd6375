"""Validation loss and perplexity."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cola_train import distributed
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine
from cola_train.errors import UserError


@dataclass(frozen=True)
class Validation:
    loss: float  # mean over predicted tokens, nats
    perplexity: float
    tokens: int  # predicted


def evaluate(engine: Engine, batches: Iterable[Batch]) -> Validation:
    """The true mean loss over `batches` of all processes, each of which holds its own share.

    Every process must bring the same number of batches.

    Raises:
        UserError: they have no token to predict.
    """
    loss_sum, tokens = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        loss, predicted = engine.evaluate(batch)
        loss_sum += loss.double().cpu()
        tokens += predicted
    total_loss, total_tokens = distributed.sum_over_ranks([loss_sum.item(), tokens])
    if not total_tokens:
        raise UserError("evaluation: no token to predict: give the validation split more text")
    mean = total_loss / total_tokens
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return Validation(mean, perplexity, int(total_tokens))
