"""What a model says of given texts, token by token; by all processes of a group together.

Shapes: B rows, T positions, N predictions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cola_train import distributed
from cola_train.data.tokenizer import Tokenizer
from cola_train.inference.generate import CacheMaker, next_tokens
from cola_train.inference.pieces import Pieces, StopStrings
from cola_train.inference.sampling import Sampler, Sampling

LOGITS = 2**25  # predictions x vocabulary of a batch at most, but for a single row's


@dataclass(frozen=True)
class Request:
    """The tokens of `continuation`, given those of `context`, at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Window:
    """A part of a request that the model sees at once: the last `predicted` of what follows
    `inputs` are asked for, `targets`."""

    request: int
    inputs: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from, at least one; how many new ones at most, and texts that end them."""

    tokens: Sequence[int]
    new_tokens: int
    stop: Sequence[str]


def windows(request: Request, index: int, length: int) -> Iterator[Window]:
    """Each token of the continuation once, each window with as much before it as there is room
    for in `length` positions. Of a context too long the end is kept."""
    tokens = [*request.context, *request.continuation]
    done = len(request.context)
    while done < len(tokens):
        end = min(done + length, len(tokens))
        inputs = tokens[max(0, end - 1 - length) : end - 1]
        yield Window(index, inputs, tokens[done:end])
        done = end


class Scorer:
    """model: maps tokens (B, T) to logits, as `Llama.forward` does. max_length: of its rows.
    batch_size: rows of a process at a time. vocab_size: of the model. advance: called before each
    batch with how many are done, and of how many."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        make_cache: CacheMaker,
        device: torch.device,
        *,
        max_length: int,
        vocab_size: int,
        batch_size: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model, self.tokenizer, self.make_cache = model, tokenizer, make_cache
        self.device, self.max_length, self.vocab_size = device, max_length, vocab_size
        self.batch_size, self.advance = batch_size, advance

    def log_likelihoods(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability, nats, and whether each token of it is the
        likeliest. All processes give the same requests; each does its share of the batches."""
        cut = (windows(each, i, self.max_length) for i, each in enumerate(requests))
        # the longest first: rows of a batch are alike, and what does not fit shows at once
        parts = sorted((w for each in cut for w in each), key=lambda w: -len(w.inputs))
        batches = list(self._batches(parts))
        rank, world = distributed.rank(), distributed.world_size()
        sums, misses = [0.0] * len(requests), [0.0] * len(requests)
        for first in range(0, len(batches), world):
            self.advance(first, len(batches))
            mine = batches[first + rank : first + rank + 1]
            # a process without one calls the model too: it may hold a part of the weights
            batch = mine[0] if mine else [Window(0, [self.tokenizer.eos_id], [0])]
            for window, (total, greedy) in zip(batch, self._scores(batch), strict=True):
                if mine:
                    sums[window.request] += total
                    misses[window.request] += not greedy
        found = distributed.sum_over_ranks([*sums, *misses])
        self.advance(len(batches), len(batches))
        return [(found[i], found[len(requests) + i] == 0) for i in range(len(requests))]

    def _batches(self, parts: Sequence[Window]) -> Iterator[list[Window]]:
        batch: list[Window] = []
        predictions = 0
        for window in parts:
            predictions += len(window.targets)
            if batch and (len(batch) == self.batch_size or predictions * self.vocab_size > LOGITS):
                yield batch
                batch, predictions = [], len(window.targets)
            batch.append(window)
        if batch:
            yield batch

    @torch.no_grad()
    def _scores(self, batch: Sequence[Window]) -> list[tuple[float, bool]]:
        """Of each window."""
        longest = max(len(window.inputs) for window in batch)
        tokens_BT = torch.zeros(len(batch), longest, dtype=torch.int64)
        asked_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, window in enumerate(batch):  # padding follows: nothing before it sees it
            size = len(window.inputs)
            tokens_BT[row, :size] = torch.tensor(window.inputs)
            asked_BT[row, size - len(window.targets) : size] = True
        targets_N = torch.tensor([t for w in batch for t in w.targets]).to(self.device)
        logits_NV: Tensor = self.model(tokens_BT.to(self.device), at_BT=asked_BT.to(self.device))
        log_p_NV = logits_NV.float().log_softmax(-1)
        log_p_N = log_p_NV.gather(-1, targets_N[:, None])[:, 0].double().cpu()
        greedy_N = (log_p_NV.argmax(-1) == targets_N).cpu()
        sizes = [len(window.targets) for window in batch]
        pairs = zip(log_p_N.split(sizes), greedy_N.split(sizes), strict=True)
        return [(log_p.sum().item(), bool(greedy.all())) for log_p, greedy in pairs]

    def continuations(self, prompts: Sequence[Prompt]) -> list[str]:
        """The likeliest token each time, until a stop string, the end of the text or the number of
        new ones. All processes give the same prompts and do the same.

        Raises:
            TrainingError: the model has diverged.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].tokens))
        texts = [""] * len(prompts)
        for first in range(0, len(order), self.batch_size):
            self.advance(first, len(order))
            batch = order[first : first + self.batch_size]
            for i, text in zip(batch, self._texts([prompts[i] for i in batch]), strict=True):
                texts[i] = text
        self.advance(len(order), len(order))
        return texts

    def _texts(self, prompts: Sequence[Prompt]) -> list[str]:
        steps = max(prompt.new_tokens for prompt in prompts)
        read = [prompt.tokens for prompt in prompts]
        vocab_size, end = self.tokenizer.vocab_size, self.tokenizer.eos_id
        sampler = Sampler(Sampling(temperature=0), read, vocab_size, steps, self.device)
        pieces = [Pieces(self.tokenizer, prompt.tokens) for prompt in prompts]
        stops = [StopStrings(prompt.stop) for prompt in prompts]
        texts, ended = [""] * len(prompts), [False] * len(prompts)
        for step, drawn in enumerate(
            next_tokens(self.model, read, sampler, self.make_cache, steps), start=1
        ):
            for i, token in enumerate(drawn):
                if ended[i]:
                    continue
                texts[i] += stops[i].add(pieces[i].add(token))
                last = token == end or step == prompts[i].new_tokens
                if last and not stops[i].found:
                    texts[i] += stops[i].add(pieces[i].rest())
                    texts[i] += "" if stops[i].found else stops[i].rest()
                ended[i] = last or stops[i].found
            if all(ended):
                break
        return texts
