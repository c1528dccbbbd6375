"""Text to token ids and back, on top of the `tokenizers` library."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cola_train.errors import UserError

if TYPE_CHECKING:
    import tokenizers

TRAIN = "train"  # the value of data.tokenizer that asks for a tokenizer of the corpus's own
END_OF_TEXT = "<|endoftext|>"
END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
BYTES = 256
LONGEST_WORD = 256  # bytes, of those that a tokenizer is trained on; text has none so long


class Tokenizer:
    """A tokenizer whose output is plain text's tokens only: no special tokens are added or found.

    vocab_size: one more than the largest id that text, an unknown word of it included, or the
        end-of-document token can have. Special tokens past it do not count: T5's 100 sentinels
        follow its 32,000 pieces, and a model of 32,000 tokens takes T5's text.
    eos_id: the id that ends a document; `encode` never returns it.
    """

    def __init__(self, backend: "tokenizers.Tokenizer", given: str) -> None:
        """given: what messages call it."""
        vocabulary = backend.get_vocab(with_added_tokens=True)
        ends = [token for token in END_TOKENS if token in vocabulary]
        if not ends:
            raise UserError(
                f"{given}: no end-of-document token (looked for "
                f"{', '.join(END_TOKENS)}): add one of them to it"
            )
        self.eos_id: int = vocabulary[ends[0]]
        special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
        text_ids = {i for token, i in vocabulary.items() if token not in special}
        self._unknown_id = _unknown_id(backend)
        if self._unknown_id is not None:
            text_ids.add(self._unknown_id)
        self.vocab_size: int = 1 + max([self.eos_id, *text_ids])
        # A document that quotes "</s>" is text like any other, and nothing is cut or padded here.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._given = backend, given

    @classmethod
    def load(cls, name: str, option: str = "data.tokenizer") -> "Tokenizer":
        """From a tokenizer.json, a folder holding one, or a name on the Hugging Face hub; `option`
        gave the name."""
        path = local_file(name, option)
        if path is None:
            path = _from_hub(name, option)
        return cls._of_file(path, f"{option}={name}")

    @classmethod
    def of_model(
        cls, path: Path, vocab_size: int, fix: str, sha256: str | None = None
    ) -> "Tokenizer":
        """From the tokenizer.json of a model with so many tokens. fix: the end of each message.
        sha256: of the file, in hex, where that is known.

        Raises:
            UserError: it cannot be read, or is another one.
        """
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
        another = f"{path}: another tokenizer than the model's"
        if sha256 not in (None, digest):
            raise UserError(f"{another}: its checksum differs; {fix}")
        tokenizer = cls._of_file(path, str(path))
        if tokenizer.vocab_size > vocab_size:
            sizes = f"it has {tokenizer.vocab_size} tokens, and the model {vocab_size}"
            raise UserError(f"{another}: {sizes}; {fix}")
        return tokenizer

    @classmethod
    def _of_file(cls, path: Path, given: str) -> "Tokenizer":
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # `tokenizers` raises plain Exception
            where = given if given == str(path) else f"{given}: {path}"
            raise UserError(
                f"{where} is not a tokenizer.json of the `tokenizers` library ({error}): replace it"
            ) from error
        return cls(backend, given)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE with `<|endoftext|>`. The same texts give the same tokenizer."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # Merging takes time quadratic in the longest word, which without blanks is the text.
        cut = pre_tokenizers.FixedLength(length=LONGEST_WORD)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = words
        return cls(backend, f"data.tokenizer={TRAIN}")

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self._backend.to_str(pretty=True)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text's ids: uint32, 1-D, all below `vocab_size`, none equal to `eos_id`."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises plain Exception
            raise self._cannot_encode(error) from error
        return [self._text_only(np.asarray(e.ids, dtype=np.uint32)) for e in encodings]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens (the end of a document) are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def token_of(self, token_id: int) -> str:
        """As the vocabulary spells it. Raises KeyError if there is none of that id."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise KeyError(token_id)
        return token

    def bytes_of_tokens(self) -> np.ndarray:
        """UTF-8 bytes of what each token stands for within a text, (vocab_size,) int64: what it
        adds when it is decoded after others. A special token, as the end of a document, has none.
        """
        names = [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]
        added = self._backend.get_added_tokens_decoder()
        decoder = json.loads(self._backend.to_str())["decoder"] or {}
        kinds = {step["type"] for step in [decoder, *decoder.get("decoders", [])] if step}
        decode = self._backend.decode_batch
        once = decode([[i] for i in range(self.vocab_size)])
        twice = decode([[i, i] for i in range(self.vocab_size)])  # the first may lose its blank
        counts = [len(b.encode()) - len(a.encode()) for a, b in zip(once, twice, strict=True)]
        for i, name in enumerate(names):
            if i in added:
                counts[i] = 0 if added[i].special else len(name.encode())
            elif "ByteLevel" in kinds:  # a character of the name is a byte, maybe half a letter
                counts[i] = len(name)
            elif "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", name):
                counts[i] = 1
        return np.array(counts, dtype=np.int64)

    def same_tokens(self, other: "Tokenizer") -> bool:
        """Whether both make the same tokens of any text."""
        return self.eos_id == other.eos_id and self._makes() == other._makes()

    def _makes(self) -> dict[str, Any]:
        """What decides the tokens of a text; templates for its ends do not."""
        values = json.loads(self._backend.to_str())
        special = {token["content"] for token in values["added_tokens"] if token["special"]}
        plain = [token for token in values["added_tokens"] if token["content"] not in special]
        parts = {name: values[name] for name in ("normalizer", "pre_tokenizer", "model")}
        return {**parts, "added_tokens": plain}

    def lost(self, texts: Iterable[str]) -> tuple[Counter[str], int]:
        """Characters that leave no token, how often each is there, and the number of all; those
        that go in normalising or in splitting into words, as blanks do, are not lost.

        Reads no text where nothing can be lost, for there is a token for what is unknown.
        """
        if self._unknown_id not in (None, self.eos_id):
            return Counter(), 0
        characters: Counter[str] = Counter()
        for text in texts:
            characters.update(text)
        lost = {c: count for c, count in characters.items() if self._loses(c)}
        return Counter(lost), characters.total()

    def _loses(self, character: str) -> bool:
        backend = self._backend
        text = backend.normalizer.normalize_str(character) if backend.normalizer else character
        words = [text]
        if backend.pre_tokenizer:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        try:
            tokens = [t for w in words for t in backend.model.tokenize(w) if t.id != self.eos_id]
        except Exception as error:
            raise self._cannot_encode(error) from error
        covered = sum(end - start for start, end in (t.offsets for t in tokens))
        return covered < sum(len(word.encode()) for word in words)

    def _cannot_encode(self, error: Exception) -> UserError:
        return UserError(
            f"{self._given}: cannot encode the text ({error}): mend the tokenizer, or give another"
        )

    def _text_only(self, ids: np.ndarray) -> np.ndarray:
        # Some models hold their special tokens as pieces too (T5), so text can still spell them.
        keep = (ids < self.vocab_size) & (ids != self.eos_id)
        return ids if keep.all() else ids[keep]


def _unknown_id(backend: "tokenizers.Tokenizer") -> int | None:
    """The token that stands for words that are not in the vocabulary, if there is one."""
    model = json.loads(backend.to_str())["model"]
    unknown: int | None = model.get("unk_id")
    if model.get("unk_token") is not None:
        unknown = backend.token_to_id(model["unk_token"])
    return unknown


def local_file(name: str, option: str = "data.tokenizer") -> Path | None:
    """The tokenizer.json that an option's `name` stands for; None when it can only be a hub's."""
    path = Path(name)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise UserError(f"{option}={name}: that folder holds no tokenizer.json")
        return path / "tokenizer.json"
    if path.is_file():
        return path
    is_hub_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not name.endswith(".json")
    if not is_hub_name:
        raise UserError(
            f"{option}={name}: no such file: give a tokenizer.json, a folder holding one, "
            f"a Hugging Face hub name, or {TRAIN!r}"
        )
    return None


def problems(name: str, vocab_size: int, model_vocab_size: int | None) -> list[str]:
    """What is wrong with `data.tokenizer`, as far as can be told without a download."""
    if name == TRAIN:
        smallest = BYTES + 1
        if vocab_size < smallest:
            return [
                f"data.vocab_size={vocab_size}: a byte-level tokenizer has at least {smallest} "
                f"tokens ({BYTES} bytes and {END_OF_TEXT})"
            ]
        if model_vocab_size is not None and vocab_size > model_vocab_size:
            given = f"data.tokenizer={name}"
            return [does_not_fit(given, vocab_size, model_vocab_size, "data.vocab_size")]
        return []
    try:
        if local_file(name) is None:
            return []
        loaded = Tokenizer.load(name)
    except UserError as error:
        return list(error.problems)
    if model_vocab_size is not None and loaded.vocab_size > model_vocab_size:
        return [does_not_fit(f"data.tokenizer={name}", loaded.vocab_size, model_vocab_size)]
    return []


def does_not_fit(
    given: str, vocab_size: int, model_vocab_size: int, field: str | None = None
) -> str:
    """given: the option that decides the tokenizer, and its value; field: what to change if it is
    another option."""
    return (
        f"model.vocab_size={model_vocab_size} is smaller than the tokenizer's {vocab_size} tokens "
        f"({given}): set model.vocab_size={vocab_size} or more, or change "
        f"{field or given.split('=')[0]}"
    )


def _from_hub(name: str, option: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # the hub's, the HTTP client's and the cache's errors
        reason = str(error).strip().splitlines() or [""]
        raise UserError(
            f"{option}={name}: cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason[0]}): check the name and the network, or give a "
            f"local path: {option}=FOLDER/tokenizer.json"
        ) from error
