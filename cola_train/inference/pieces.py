"""Text of tokens as they come: in pieces that never split a character, up to a stop string."""

from collections.abc import Sequence

from cola_train.data.tokenizer import Tokenizer

UNKNOWN = "\ufffd"  # what decoding makes of bytes that are no character, or not yet
KEPT = 32  # tokens before a piece that it is decoded with


class Pieces:
    """The text that each token of an answer adds.

    A token may end in the middle of a character, and its text depends on what comes before it (a
    first word has no blank). So a piece is what the tokens up to here decode to, beyond what those
    before did, without an end that the next token may change.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        """prompt: the tokens that the answer follows."""
        self._decode = tokenizer.decode
        self._tokens = list(prompt[-KEPT:])
        self._text = self._decode(self._tokens)
        self._shown = len(self._text)  # characters, of the prompt or of pieces

    def add(self, token: int) -> str:
        """The piece that this token completes; often empty."""
        self._tokens.append(token)
        self._text = self._decode(self._tokens)
        whole = self._text.rstrip(UNKNOWN)
        piece, self._shown = whole[self._shown :], max(self._shown, len(whole))
        if whole == self._text and self._shown == len(whole):
            self._forget()
        return piece

    def rest(self) -> str:
        """What is left when no token follows."""
        return self._text[self._shown :]

    def _forget(self) -> None:
        """Early tokens, now and then: decoding all of them each time takes time quadratic in
        them. The first one that stays must begin a character."""
        tail = self._tokens[-KEPT:]
        text = self._decode(tail) if len(self._tokens) > 2 * KEPT else UNKNOWN
        if UNKNOWN not in text and self._text.endswith(text):
            self._tokens, self._text, self._shown = tail, text, len(text)


class StopStrings:
    """Holds back what may be the beginning of a stop string, and ends a text before one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop, self.found = tuple(stop), False
        self._held = ""

    def add(self, piece: str) -> str:
        """What can be shown of the text up to this piece, and has not been; `found` says whether
        it ends there."""
        text, self._held = self._held + piece, ""
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        held = max((_begun(text, stop) for stop in self.stop), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """What is held back when no piece follows."""
        return self._held


def _begun(text: str, stop: str) -> int:
    """The longest end of text that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
