"""A model of ours as lm-evaluation-harness sees it. Imports the harness."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.evaluation.scoring import Prompt, Request

NEW_TOKENS = 256  # of an answer, where the task says nothing

# Of texts: what all processes carry out together (`Scorer`).
Score = Callable[[Sequence[Request]], list[tuple[float, bool]]]
Continue = Callable[[Sequence[Prompt]], list[str]]


class HarnessModel(LM):
    """Text in, log-probabilities or text out; it asks `score` and `go_on` with tokens."""

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, score: Score, go_on: Continue
    ) -> None:
        super().__init__()
        self._tokenizer, self._max_length = tokenizer, max_length
        self._score, self._go_on = score, go_on

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of continuations, given contexts. Where the tokens of both together do not divide
        between them, the token in between counts to the context, as in the harness's own models.
        """
        pairs = [_with_blanks_after(*request.args) for request in requests]
        contexts = self._encode([context for context, _ in pairs])
        wholes = self._encode([context + continuation for context, continuation in pairs])
        end = self._tokenizer.eos_id  # what comes before a text
        return self._score(
            [
                Request(context or [end], whole[len(context) :])
                for context, whole in zip(contexts, wholes, strict=True)
            ]
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts."""
        texts = self._encode([request.args[0] for request in requests])
        found = self._score([Request([self._tokenizer.eos_id], text) for text in texts])
        return [total for total, _ in found]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The likeliest tokens. Of a context that leaves no room for them, the end is kept.

        Raises:
            UserError: a task asks for tokens that are drawn.
        """
        contexts = self._encode([request.args[0] for request in requests])
        prompts = []
        for request, context in zip(requests, contexts, strict=True):
            options: dict[str, Any] = request.args[1]
            if options.get("do_sample") and options.get("temperature", 1) > 0:
                raise UserError(
                    f"tasks: {request.task_name} asks for drawn tokens (do_sample), which are not "
                    "evaluated here; leave it out"
                )
            asked = options.get("max_gen_toks", options.get("max_new_tokens", NEW_TOKENS))
            new = max(1, min(asked, self._max_length - 1))
            stop = options.get("until") or []
            stop = [stop] if isinstance(stop, str) else [text for text in stop if text]
            tokens = (context or [self._tokenizer.eos_id])[-(self._max_length - new) :]
            prompts.append(Prompt(tokens, new, stop))
        return self._go_on(prompts)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self._tokenizer.encode_batch(texts)]


def _with_blanks_after(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to the word after them, as in its tokens."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
