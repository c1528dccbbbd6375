"""Validation loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cola_train import distributed
from cola_train.data.loader import Batch
from cola_train.errors import UserError
from cola_train.model.loss import IGNORE_INDEX


@dataclass(frozen=True)
class Validation:
    loss: float  # mean over predicted tokens, nats
    tokens: int  # predicted
    bytes: int = 0  # of the UTF-8 text that the predicted tokens stand for; 0: not counted

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Of all predictions the loss, of their text the bytes: the end of a document counts as a
        loss and has no text. Models of other tokenizers compare by it. None: no byte."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else None


def evaluate(
    loss_of: Callable[[Batch], tuple[Tensor, int]],
    batches: Iterable[Batch],
    bytes_of_tokens: Tensor | None = None,
) -> Validation:
    """The true mean loss over `batches` of all processes, each of which holds its own share.

    Every process must bring the same number of batches.

    Args:
        loss_of: summed loss (fp32 scalar, nats) and number of predicted tokens of a batch.
        bytes_of_tokens: of each token's text, (V,) int64; None: bytes are not counted.

    Raises:
        UserError: they have no token to predict.
    """
    loss_sum, tokens, of_text = torch.zeros((), dtype=torch.float64), 0, 0
    for batch in batches:
        if bytes_of_tokens is not None:
            targets = batch.targets[batch.targets != IGNORE_INDEX]
            of_text += int(bytes_of_tokens[targets].sum())
        loss, predicted = loss_of(batch)
        loss_sum += loss.double().cpu()
        tokens += predicted
    sums = distributed.sum_over_ranks([loss_sum.item(), tokens, of_text])
    total_loss, total_tokens, total_bytes = sums
    if not total_tokens:
        raise UserError("evaluation: no token to predict: give the validation split more text")
    return Validation(total_loss / total_tokens, int(total_tokens), int(total_bytes))
