"""Our tokenizer as files that transformers' AutoTokenizer reads, giving the same ids."""

import json
from typing import Any

from cola_train.data.tokenizer import Tokenizer

PADDING = ("<pad>", "[PAD]", "<|pad|>")


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """Their content, as JSON values, by name. length: of the sequences that the model was trained
    with.

    As in training, text is text: no special token is added or found in it.
    """
    content = json.loads(tokenizer.to_json())
    special = {t["content"]: t["id"] for t in content["added_tokens"] if t["special"]}
    tokens = {"eos_token": tokenizer.token_of(tokenizer.eos_id)}
    paddings = [t for t in PADDING if t in special and special[t] < tokenizer.vocab_size]
    tokens["pad_token"] = next(iter(paddings), tokens["eos_token"])
    content["post_processor"] = None  # it would add special tokens
    unwanted = [t for t, i in special.items() if i == tokenizer.eos_id or i >= tokenizer.vocab_size]
    content["pre_tokenizer"] = without(unwanted, content)
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "model_max_length": length,
        },
        "special_tokens_map.json": tokens,
        "generation_config.json": {
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": special.get(tokens["pad_token"], tokenizer.eos_id),
        },
    }


def without(unwanted: list[str], content: dict[str, Any]) -> dict[str, Any] | None:
    """The pre-tokenizer of a tokenizer.json, made to take out what text would spell such tokens
    with, as `Tokenizer` leaves those out. Only unigram models (T5's) hold them as pieces that text
    can spell."""
    before: dict[str, Any] | None = content["pre_tokenizer"]
    if content["model"]["type"] != "Unigram" or not unwanted:
        return before
    pieces = {piece for piece, _ in content["model"]["vocab"]}
    cuts = [
        {"type": "Split", "pattern": {"String": token}, "behavior": "Removed", "invert": False}
        for token in unwanted
        if token in pieces
    ]
    if before and all(cut in before.get("pretokenizers", []) for cut in cuts):
        return before  # of an exported folder, which was imported
    return {"type": "Sequence", "pretokenizers": [*([before] if before else []), *cuts]}
