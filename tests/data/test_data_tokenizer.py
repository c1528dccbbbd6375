"""Training a tokenizer, and what of the text it keeps."""

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from corpora import some_texts, t5_like, write_jsonl
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from cola_train.data import preparation
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.prepared import open_data
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
    share = float(re.search(r"tokenizer of 300 tokens (\d+)/\1: ([\d.]+) MB read", said)[2])
    assert share == pytest.approx(0.95 * (tmp_path / "a.txt").stat().st_size / 1e6, abs=0.1)


def test_a_file_that_cannot_be_read_while_training_is_named(
    tmp_path: Path, data_config: MakeConfig
) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        prepare(data_config(files=[f"{tmp_path}/a.txt"]), progress=False)


def of_words(*words: str, unknown: str | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of whole words, `</s>` behind them, and after it its unknown token."""
    vocabulary = {word: i for i, word in enumerate([*words, "</s>", *filter(None, [unknown])])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unknown or "none"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["</s>", *filter(None, [unknown])]
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in special])
    return backend


def of_letters(letters: str, **options: Any) -> tokenizers.Tokenizer:
    """BPE of characters alone, and what it does with others."""
    extra = ["</s>", *options.pop("extra", [])]
    vocabulary = {token: i for i, token in enumerate([*letters, *extra])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], **options))
    backend.add_special_tokens([tokenizers.AddedToken("</s>", special=True)])
    return backend


def test_an_unknown_word_is_text_though_its_token_is_special_and_last(
    tmp_path: Path, data_config: MakeConfig
) -> None:
    backend = of_words("oak", "elm", "fir", unknown="<UNK>")
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "t.jsonl", ["oak pine pine fir"] * 3)
    write_jsonl(tmp_path / "v.jsonl", ["yew"])
    config = data_config(
        files=[f"{tmp_path}/t.jsonl"], validation_files=[f"{tmp_path}/v.jsonl"],
        tokenizer=str(tmp_path),
    )  # fmt: skip
    data = open_data(config, model_vocab_size=5)
    assert data.tokenizer.vocab_size == 5  # three words, </s>, <UNK>, no <mask>
    assert data.train.document(0).tolist() == [0, 4, 4, 2, 3]
    assert data.validation.document(0).tolist() == [4, 3]


LATIN = "abcdefghijklmnopqrstuvwxyz"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(without: str = "") -> tokenizers.Tokenizer:
    alphabet = "".join(c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c != without)
    backend = of_letters(alphabet)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def lower_case(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """As BERT's: blanks, accents and capitals go before the model sees the text."""
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def llama_like() -> tokenizers.Tokenizer:
    backend = of_letters(f"▁{LATIN}", extra=BYTE_PIECES, byte_fallback=True)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return backend


def ends_with_unknown() -> tokenizers.Tokenizer:
    """Its unknown token is the end of a document, which no text may have."""
    return lower_case(of_letters(LATIN, unk_token="</s>"))


TEXT = "Ein Öl\tund\n 日本 oil\u200b"  # two characters that no Latin alphabet has
TOKENIZERS: dict[str, tuple[Callable[[], tokenizers.Tokenizer], set[str]]] = {
    "latin letters": (lambda: of_letters(LATIN), set("EÖ\t\n 日本\u200b")),
    "lower case": (lambda: lower_case(of_letters(LATIN)), set("日本")),
    "end of text for unknown": (ends_with_unknown, set("日本")),
    "an unknown token": (lambda: of_letters(LATIN, extra=["?"], unk_token="?"), set()),
    "bytes": (byte_level, set()),
    "bytes, one missing": (lambda: byte_level("ĸ"), set("Ö")),  # its second of two
    "bytes for the unknown": (llama_like, set()),
    "words": (lambda: of_words("oil", unknown="[UNK]"), set()),
    "T5's shape": (t5_like, set()),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_drops_characters_is_named(
    tmp_path: Path, data_config: MakeConfig, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, dropped = TOKENIZERS[name]
    path = tmp_path / "tokenizer.json"
    make().save(str(path))
    tokenizer = Tokenizer.load(str(path))
    lost, total = tokenizer.lost([TEXT, TEXT])
    assert set(lost) == dropped and total in (0, 2 * len(TEXT))
    assert all(count == 2 * TEXT.count(character) for character, count in lost.items())

    write_jsonl(tmp_path / "a.jsonl", [TEXT] * 20)
    config = data_config(files=[f"{tmp_path}/a.jsonl"], tokenizer=str(path))
    prepare(config, progress=False)
    said = capsys.readouterr().err
    assert bool(dropped) == (f"data.tokenizer={path}: no token for " in said)
    if name == "lower case":
        assert "no token for 11 % of the text's characters, '日', '本': they are left out" in said
    prepare(config, progress=False)
    assert capsys.readouterr().err == ""  # the shards are there


def test_a_tokenizer_that_gives_up_on_an_unknown_word_is_named(
    tmp_path: Path, data_config: MakeConfig
) -> None:
    of_words("oil").save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "a.jsonl", ["oil and water"] * 20)
    config = data_config(files=[f"{tmp_path}/a.jsonl"], tokenizer=str(tmp_path))
    with pytest.raises(UserError, match=rf"data\.tokenizer={tmp_path}: cannot encode the text"):
        prepare(config, progress=False)


def test_bytes_of_tokens_add_up_to_those_of_the_text() -> None:
    text = "Naïve 😀 <|endoftext|> cats → trees\n 3.14 ünder"
    bpe = Tokenizer.train([text * 3], 300)
    table = bpe.bytes_of_tokens()
    assert table[bpe.encode(text)].sum() == len(text.encode()) and table[bpe.eos_id] == 0
    pieces = Tokenizer(t5_like(), "t5")
    ids = pieces.encode("the cat sat on a mat, dogs!")
    assert pieces.bytes_of_tokens()[ids].sum() == len(" " + pieces.decode(ids))
