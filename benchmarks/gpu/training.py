"""A training run of the default model on the source of Python's standard library: every step of it
with the trainer's engine, loader and schedule, to a validation loss.

Its tokens are the default run's where `tokenizers` is installed, else bytes, which are said to be.
Bits a byte of text compare the two.
"""

import hashlib
import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare_config import bare_config
from benchmarks.gpu.parts import Figures, Given, Record
from benchmarks.gpu.sizes import Sizes
from cola_train import distributed, hardware
from cola_train.config.schema import Config
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import BatchLoader, evaluation_batches
from cola_train.data.options import StdlibOptions
from cola_train.data.preparation import prepare
from cola_train.data.shards import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Shard,
    ShardWriter,
    fingerprint,
    token_dtype,
)
from cola_train.data.sources import READERS
from cola_train.evaluation.loss import evaluate
from cola_train.files import write_json
from cola_train.optim import AdamWOptions
from cola_train.train import build

BYTES = 256  # and one more token, which ends a document
HELD_OUT = 20  # every so manieth file is for validation


def measure(given: Given, record: Record) -> None:
    sizes, device = given.sizes, distributed.start()
    hardware.tune_process(None, 1)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        folder, tokens_of = tokens(sizes, Path(temporary))
        train, validation = (TokenDataset.open(folder, s) for s in ("train", "validation"))
        record("data", {
            "tokens": tokens_of, "train_tokens": train.n_tokens,
            "validation_tokens": validation.n_tokens, "seconds": time.perf_counter() - start,
        })  # fmt: skip
        config = run_config(sizes, train.vocab_size)
        engine = build(config, device)
        shared: dict[str, Any] = {
            "sequence_length": config.train.sequence_length, "rank": 0, "world_size": 1,
            "packing": "packed", "with_documents": False,
        }  # fmt: skip
        loader = BatchLoader(
            train, batch_size=config.batch_size, micro_batch_size=config.batch_size,
            seed=config.seed, **shared,
        )  # fmt: skip
        losses, start = [], time.perf_counter()
        for step in range(1, sizes.run_steps + 1):
            lr = config.method.learning_rate(config, step)
            losses.append(engine.train_step(loader.next(), lr).loss)
            if step % 50 == 0 or step == sizes.run_steps:
                seconds = time.perf_counter() - start
                record("losses", {"steps": step, "seconds": seconds, "losses": losses})
        loader.close()
        found = evaluate(engine.evaluate, evaluation_batches(
            validation, micro_batch_size=config.batch_size, max_tokens=sizes.validation_tokens,
            **shared,
        ))  # fmt: skip
        bits = found.loss / math.log(2) * validation.n_tokens / validation.bytes_of_text
        record("validation", {
            "good": math.isfinite(found.loss), "loss": found.loss,
            "perplexity": found.perplexity, "tokens": found.tokens, "bits_per_byte": bits,
        })  # fmt: skip


def run_config(sizes: Sizes, vocab_size: int) -> Config:
    """The default run's, but for the vocabulary."""
    config = bare_config(
        "small", "cola", "none", batch_size=sizes.run_batch, sequence_length=sizes.run_sequence,
        precision="auto", compiled=False, layers=sizes.layers,
    )  # fmt: skip
    model = replace(config.model, **sizes.widths | {"vocab_size": vocab_size})
    train = replace(config.train, steps=sizes.run_steps)
    return replace(config, model=model, train=train, optim=AdamWOptions("adamw"))


def tokens(sizes: Sizes, temporary: Path) -> tuple[Path, str]:
    """A prepared folder, and what its tokens are."""
    vocab_size = sizes.widths.get("vocab_size", 4096) + BYTES * sizes.dry_run
    data = StdlibOptions("stdlib", vocab_size=vocab_size, max_files=sizes.max_files)
    if importlib.util.find_spec("tokenizers") is None:
        write_bytes(data, temporary)
        return temporary, "bytes, as tokenizers is not installed"
    if sizes.dry_run:
        data = replace(data, cache_dir=str(temporary), workers=1)
    return prepare(data, progress=False), f"a byte-level BPE of {vocab_size:,}"


def write_bytes(data: StdlibOptions, folder: Path) -> None:
    """The files of the standard library, a token for each byte."""
    texts = list(documents(data))
    splits = {"train": [t for i, t in enumerate(texts) if i % HELD_OUT],
              "validation": texts[::HELD_OUT]}  # fmt: skip
    tokenizer = hashlib.sha256(b"bytes").hexdigest()
    manifest: dict[str, Any] = {
        "format": FORMAT, "vocab_size": BYTES + 1, "eos_id": BYTES, "splits": {},
        "tokenizer": {"name": "bytes", "sha256": tokenizer},
    }  # fmt: skip
    for split, of in splits.items():
        writer = ShardWriter(folder, split, token_dtype(BYTES + 1), BYTES)
        size = sum(map(len, of))
        writer.add([np.frombuffer(text, np.uint8) for text in of], size)
        shards: list[Shard] = [writer.finish()]
        manifest["splits"][split] = {
            "fingerprint": fingerprint(tokenizer, BYTES, shards),
            "bytes_of_text": size,
            "shards": [shard.to_json() for shard in shards],
        }
    (folder / TOKENIZER).write_text("{}")
    write_json(folder / MANIFEST, manifest)


def documents(data: StdlibOptions) -> Iterator[bytes]:
    source = READERS[StdlibOptions]
    for file in source.files(data):
        for text in source.documents(file, data.text_field):
            yield text.encode()


def lines(figures: Figures) -> list[str]:
    said = []
    if "data" in figures:
        of = figures["data"]
        said.append(
            f"The source of Python's standard library, {of['train_tokens']:,} tokens "
            f"({of['tokens']}), prepared in {of['seconds']:.0f} s."
        )
    if "losses" in figures:
        of = figures["losses"]
        said.append(
            f"{of['steps']} steps of the default model in {of['seconds']:.1f} s; loss "
            f"{of['losses'][0]:.3f} to {of['losses'][-1]:.3f}."
        )
    if "validation" in figures:
        of = figures["validation"]
        said.append(
            f"**Validation loss {of['loss']:.4f}**, perplexity {of['perplexity']:.2f} "
            f"({of['tokens']:,} tokens), {of['bits_per_byte']:.3f} bits a byte."
        )
    return [" ".join(said)]
