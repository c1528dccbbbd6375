"""Text that goes on from prompts: prefill, then a token of each row at a time, with a cache.

Shapes: B rows, T positions, V ids. Prompts of different length are padded on the left; each row
gives what it would alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from cola_train.config.fields import Among, PositiveInt
from cola_train.errors import TrainingError, UserError
from cola_train.inference.caches import CACHES, check_kind
from cola_train.inference.graphs import CacheMaker, fastest
from cola_train.inference.pieces import Pieces, StopStrings
from cola_train.inference.sampling import NOT_FINITE, Sampler, Sampling

if TYPE_CHECKING:  # a training uses this file and reads no safetensors
    from cola_train.inference.load import Trained


@dataclass(frozen=True)
class Limits:
    """When an answer ends."""

    new_tokens: PositiveInt = 128  # of an answer, at most
    stop: list[str] = field(default_factory=list)  # texts before which an answer ends
    past_end: bool = False  # go on after the end-of-text token


@dataclass(frozen=True)
class Decoding:
    """How tokens are computed: one text, but for rounding."""

    # what is kept of earlier positions: keys and values, or bottlenecks (`cola-plan inference`)
    cache: Annotated[str, Among(CACHES)] = "kv"
    # record the step of a token as one CUDA graph, and replay it; null: on a GPU with cache=kv
    cuda_graph: bool | None = None
    # on a GPU: compile the step of a token first, which takes seconds and pays for long answers
    compile: bool = False
    # on a CPU in bf16: tokens of a single prompt by C++, which g++ compiles once
    native: bool = False


@dataclass
class Answer:
    """What follows a prompt. tokens: those drawn, the end-of-text token or those of a stop string
    included. ended: by what: new_tokens, length (the model's), end_of_text or stop; empty: it goes
    on."""

    prompt: str
    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: str = ""


class Generation:
    """Answers to a batch of prompts, made while it is iterated over: (row, piece of its text).

    answers: as far as they are. prefill_seconds: until the first tokens were drawn; seconds: in
    all.
    """

    def __init__(
        self,
        trained: "Trained",
        prompts: Sequence[str],
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        """Raises:
        UserError: the model cannot decode so (`caches.check_kind`, `graphs.fastest`); a prompt
            leaves it no room for an answer.
        """
        how = decoding or Decoding()
        check_kind(how.cache, trained.model)
        self.forward, self.new_cache = fastest(
            trained.model, how.cache, how.cuda_graph, how.compile, how.native
        )
        self.limits, self.sampling = limits or Limits(), sampling or Sampling()
        if "" in self.limits.stop:
            raise UserError("stop: an empty text ends every answer at once; leave it out")
        self.trained = trained
        self.prompts = [encoded(trained, prompt) for prompt in prompts]
        sizes = map(len, self.prompts)
        self.answers = [Answer(*each) for each in zip(prompts, sizes, strict=True)]
        self.prefill_seconds = self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Raises:
        TrainingError: the model has diverged.
        """
        model, tokenizer = self.trained.model, self.trained.tokenizer
        room = [model.max_length - len(prompt) for prompt in self.prompts]
        most = [min(self.limits.new_tokens, tokens) for tokens in room]
        device, steps = model.embedding.weight.device, max(most)
        sampler = Sampler(self.sampling, self.prompts, tokenizer.vocab_size, steps, device)
        rows = [_Row(self, i, most[i]) for i in range(len(self.prompts))]
        start = time.perf_counter()
        for drawn in next_tokens(self.forward, self.prompts, sampler, self.new_cache, steps):
            self.seconds = time.perf_counter() - start
            self.prefill_seconds = self.prefill_seconds or self.seconds
            for i, (row, token) in enumerate(zip(rows, drawn, strict=True)):
                if not row.answer.ended and (piece := row.add(token)):
                    yield i, piece
            if all(answer.ended for answer in self.answers):
                return


class _Row:
    """An answer in the making; most: tokens that it may have."""

    def __init__(self, generation: Generation, i: int, most: int) -> None:
        self.answer, self.limits, self.most = generation.answers[i], generation.limits, most
        tokenizer = generation.trained.tokenizer
        self.end = None if self.limits.past_end else tokenizer.eos_id
        self.pieces = Pieces(tokenizer, generation.prompts[i])
        self.stop = StopStrings(self.limits.stop)

    def add(self, token: int) -> str:
        """The text that can be shown with this token."""
        answer = self.answer
        answer.tokens.append(token)
        piece = self.stop.add(self.pieces.add(token))
        at_end = token == self.end
        if not self.stop.found and (at_end or len(answer.tokens) == self.most):
            piece += self.stop.add(self.pieces.rest())
            if not self.stop.found:
                piece += self.stop.rest()
            by = "new_tokens" if self.most == self.limits.new_tokens else "length"
            answer.ended = "end_of_text" if at_end else by
        if self.stop.found:
            answer.ended = "stop"
        answer.text += piece
        return piece


def generate(
    trained: "Trained",
    prompts: Sequence[str],
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    decoding: Decoding | None = None,
) -> list[Answer]:
    """Answers to a batch of prompts, whole; arguments and errors are those of `Generation`."""
    generation = Generation(trained, prompts, limits, sampling, decoding)
    for _ in generation:
        pass
    return generation.answers


def stream(
    trained: "Trained",
    prompt: str,
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    decoding: Decoding | None = None,
) -> Iterator[str]:
    """The answer to one prompt in pieces, as it is made; the rest as for `generate`."""
    for _, piece in Generation(trained, [prompt], limits, sampling, decoding):
        yield piece


def encoded(trained: "Trained", prompt: str) -> list[int]:
    """A prompt's tokens; an empty one's is that which ends a text, as the next one follows it.

    Raises:
        UserError: it is no text, or leaves the model no room for an answer.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt: {prompt!r} holds bytes that are no UTF-8") from None
    tokens = trained.tokenizer.encode(prompt) or [trained.tokenizer.eos_id]
    if len(tokens) >= trained.model.max_length:
        shown = prompt if len(prompt) < 40 else f"{prompt[:40]}..."
        raise UserError(
            f"prompt: {len(tokens)} tokens, and prompt and answer together have at most the "
            f"model's length, {trained.model.max_length} (train.sequence_length of its run): "
            f"shorten {shown!r}"
        )
    return tokens


def next_tokens(
    model: Callable[..., Tensor],
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    new_cache: CacheMaker,
    steps: int,
) -> Iterator[list[int]]:
    """One token for each row after its prompt (token ids, at least one), step after step.

    model: takes tokens, cache and last as a `Llama` does. A step waits for the device once.

    Raises:
        TrainingError: logits are not finite.
    """
    device, longest = sampler.device, max(map(len, prompts))
    starts = [longest - len(prompt) for prompt in prompts]
    padded = [[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)]
    tokens_BT = torch.tensor(padded, device=device)
    starts_B = torch.tensor(starts, device=device) if any(starts) else None
    cache = new_cache(len(prompts), longest + steps, starts_B)
    for _ in range(steps):
        with torch.no_grad():
            tokens_B = sampler(model(tokens_BT, cache=cache, last=1)[:, -1])
        drawn: list[int] = tokens_B.tolist()
        if NOT_FINITE in drawn:
            raise TrainingError(
                "the logits are not finite: training has diverged; go back to an earlier "
                "checkpoint, and lower optim.lr"
            )
        yield drawn
        tokens_BT = tokens_B[:, None]
