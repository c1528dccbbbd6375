"""The next token of each row, of its logits: greedy, or drawn.

Shapes: B rows, V ids of the tokenizer. What an option does to logits is what transformers' logits
processor of that name does. All is done on the device; nothing waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cola_train.config.fields import (
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveFraction,
    Range,
)

NOT_FINITE = -1  # in place of the token of a row whose logits are not
COLDEST = 1e-30  # a temperature at which only the likeliest is drawn; logits over less may overflow


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: NaturalFloat = 0.8  # of the logits; 0: the likeliest token each time
    top_k: NaturalInt = 50  # draw from the so many likeliest tokens; 0: from all
    top_p: PositiveFraction = 1.0  # draw from the fewest tokens whose probability is that together
    repetition_penalty: PositiveFloat = 1.0  # of tokens of the prompt and the answer; 1: none
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0  # prompt i draws with seed + i


class Sampler:
    """Draws the next tokens of a batch, at most `steps` times.

    Row i draws by numbers of its own, which seed + i makes on the CPU: it gives the same tokens
    alone, and on another device as far as the logits are the same.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        steps: int,
        device: torch.device,
    ) -> None:
        """vocab_size: V, the tokenizer's: ids beyond it are never drawn."""
        self.sampling, self.vocab_size, self.device = sampling, vocab_size, device
        self.step = 0
        rows = range(len(prompts))
        self.uniform_NB: Tensor | None = None  # in [0, 1), what each draw is made by
        if sampling.temperature > 0:
            seeds = [torch.Generator().manual_seed(sampling.seed + i) for i in rows]
            drawn = [torch.rand(steps, generator=g, dtype=torch.float64) for g in seeds]
            self.uniform_NB = torch.stack(drawn, dim=1).to(device)
        self.seen_BV: Tensor | None = None  # tokens of prompt and answer
        if sampling.repetition_penalty != 1:
            seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for i in rows:
                seen_BV[i, list(prompts[i])] = True
            self.seen_BV = seen_BV.to(device)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """(B,) int64, on the device; NOT_FINITE where a row's logits are not. Of logits with more
        columns than V, the first V count."""
        logits_BV = logits_BV[:, : self.vocab_size].float()
        finite_B = logits_BV.sum(-1).isfinite()  # one pass, where looking at each takes several
        if self.seen_BV is not None:
            penalty = self.sampling.repetition_penalty
            logits_BV = with_repetition_penalty(logits_BV, self.seen_BV, penalty)
        if self.uniform_NB is None:
            tokens_B = logits_BV.argmax(-1)
        else:
            probabilities_BV = candidates(logits_BV, self.sampling).softmax(-1)
            tokens_B = drawn_by(probabilities_BV, self.uniform_NB[self.step])
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, tokens_B[:, None], True)
        self.step += 1
        return torch.where(finite_B, tokens_B, NOT_FINITE)


def candidates(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits by temperature, top-k and top-p, in this order; -inf: not to be drawn."""
    logits_BV = logits_BV / max(sampling.temperature, COLDEST)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BV = top_k_alone(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = top_p_alone(logits_BV, sampling.top_p)
    return logits_BV


def with_repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """What was seen becomes less likely (arXiv 1909.05858, section 4.1)."""
    penalised_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, penalised_BV, logits_BV)


def top_k_alone(logits_BV: Tensor, k: int) -> Tensor:
    """The k highest, and what equals the last of them."""
    last_B1 = logits_BV.topk(k).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < last_B1, -torch.inf)


def top_p_alone(logits_BV: Tensor, p: float) -> Tensor:
    """The fewest highest whose probabilities add up to p or more."""
    sorted_BV, order_BV = logits_BV.sort(descending=True)
    probabilities_BV = sorted_BV.softmax(-1)
    above_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    out_BV = above_BV >= p
    return logits_BV.masked_fill(torch.zeros_like(out_BV).scatter(1, order_BV, out_BV), -torch.inf)


def drawn_by(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The id at which the sum of probabilities comes to exceed that share of them."""
    sums_BV = probabilities_BV.double().cumsum(-1)
    share_B1 = sums_BV[:, -1:] * uniform_B[:, None]
    index_B1 = torch.searchsorted(sums_BV, share_B1, right=True)
    return index_B1[:, 0].clamp(max=probabilities_BV.shape[-1] - 1)
