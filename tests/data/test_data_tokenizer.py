"""Training a tokenizer, and what of the text it keeps."""

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import tokenizers
from corpora import some_texts
from tokenizers import decoders, models, pre_tokenizers, trainers

from cola_train.data import preparation
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.tokenizer import END_OF_TEXT, LONGEST_WORD, Tokenizer
from cola_train.errors import UserError

MakeConfig = Callable[..., DataOptions]


def byte_level_bpe(texts: list[str], vocab_size: int) -> str:
    """By the library alone."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet
        ),
    )
    return str(backend.to_str(pretty=True))


def test_training_is_the_library_s() -> None:
    texts = [*some_texts(200), "x" * LONGEST_WORD, " " * LONGEST_WORD, "один два 三四五" * 9]
    assert Tokenizer.train(texts, 500).to_json() == byte_level_bpe(texts, 500)


@pytest.mark.parametrize("text", ["ab" * 50_000, " " * 100_000, "ы" * 50_000, "-" * 100_000])
def test_text_without_blanks_is_cut_to_train_on(text: str) -> None:
    """Uncut, each merge would double a token, up to all of the text, and take as long."""
    tokenizer = Tokenizer.train([text], 300)
    vocabulary = tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab()
    assert max(len(token) for token in vocabulary) == LONGEST_WORD
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_others_are_kept_waiting_with_a_word_while_a_tokenizer_is_trained(
    tmp_path: Path,
    data_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`keep_alive` is called, by the caller's thread, while the library does not come back."""
    alive = threading.Semaphore(0)
    callers = set()

    def keep_alive() -> None:
        callers.add(threading.current_thread())
        alive.release()

    train = Tokenizer.train

    def slow_train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        sample = list(texts)
        assert all(alive.acquire(timeout=60) for _ in range(3)), "no word for 60 s"
        return train(sample, vocab_size)

    monkeypatch.setattr(preparation.Tokenizer, "train", slow_train)
    (tmp_path / "a.txt").write_text("\n".join(some_texts(5000)))
    prepare(data_config(files=[f"{tmp_path}/a.txt"]), keep_alive=keep_alive)
    assert callers == {threading.current_thread()}
    said = capsys.readouterr().err
    assert re.search(r"Training a tokenizer of 300 tokens:  [89]\d%", said)  # the training split


def test_a_file_that_cannot_be_read_while_training_is_named(
    tmp_path: Path, data_config: MakeConfig
) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        prepare(data_config(files=[f"{tmp_path}/a.txt"]), progress=False)
