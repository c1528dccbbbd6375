"""Small texts and files of them, and a tokenizer of T5's shape."""

import gzip
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dogs"]


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words from a small dictionary, different for each seed."""
    choose = random.Random(seed)
    words = [*WORDS, "while", "slept", "under", "an", "oak", "tree,", "naïvely"]
    return [" ".join(choose.choices(words, k=choose.randint(1, 60))) + "." for _ in range(count)]


def write_jsonl(path: Path, texts: list[str], **other: object) -> Path:
    """One object a line, gzipped where the name says so."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text, **other}) + "\n")
    return path


def t5_like() -> Tokenizer:
    """As t5-base's: unigram pieces with pad, eos and unk first, 100 sentinels after the text's."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    pieces += [(chr(c), -6.0) for c in range(33, 127)]
    sentinels = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    backend = Tokenizer(models.Unigram(pieces + [(s, 0.0) for s in sentinels], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<pad>", "</s>", "<unk>", *sentinels)]
    )
    return backend
