"""A bigram model of the training tokens, beside the validation loss that a run reached."""

import argparse
import math
from pathlib import Path

import numpy as np
import yaml

from benchmarks.overrides import make_config
from benchmarks.report import Benchmark, Report, table
from cola_train.config.checks import load
from cola_train.config.schema import Config
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import IGNORE_INDEX, evaluation_batches
from cola_train.data.prepared import open_data
from cola_train.errors import EXIT_DONE, EXIT_FAULT, UserError
from cola_train.run.metrics import read_metrics

CHUNK_TOKENS = 2**24  # counted at a time
HELD_OUT = 0.02  # of the training tokens, on which the discount is chosen
DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9)


class Bigram:
    """Interpolated Kneser-Ney of order 2: pairs discounted, the rest spread as tokens continue.

    P(b | a) = max(c(a, b) - D, 0) / c(a) + D n(a) / c(a) · Q(b), where c counts, n(a) is the
    number of different tokens after a, D the discount, and Q(b) proportional to one more than
    the number of different tokens before b.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._pairs = np.empty(0, np.int64)  # a · vocab_size + b, sorted; the others have count 0
        self._counts = np.empty(0, np.int64)

    def count(self, tokens: np.ndarray) -> None:
        """Count the pairs of neighbours in a stream, (n,) integers."""
        wide = tokens.astype(np.int64)
        pairs, counts = np.unique(wide[:-1] * self.vocab_size + wide[1:], return_counts=True)
        both = np.concatenate([self._pairs, pairs])
        self._pairs, where = np.unique(both, return_inverse=True)
        weights = np.concatenate([self._counts, counts])
        self._counts = np.bincount(where, weights).astype(np.int64)

    def loss(self, first: np.ndarray, second: np.ndarray, discount: float) -> float:
        """Mean of -log P(second | first) over pairs of tokens, (n,) each, in nats."""
        before, after = np.divmod(self._pairs, self.vocab_size)
        total = np.bincount(before, self._counts, self.vocab_size)
        followers = np.bincount(before, minlength=self.vocab_size)
        continuation = np.bincount(after, minlength=self.vocab_size) + 1.0
        continuation /= continuation.sum()

        count = self._lookup(first.astype(np.int64) * self.vocab_size + second)
        seen = np.maximum(total[first], 1)
        backoff = np.where(total[first] > 0, discount * followers[first] / seen, 1.0)
        probability = np.maximum(count - discount, 0) / seen + backoff * continuation[second]
        return float(-np.log(probability).mean())

    def _lookup(self, pairs: np.ndarray) -> np.ndarray:
        where = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        return np.where(self._pairs[where] == pairs, self._counts[where], 0)


def fit(tokens: TokenDataset) -> tuple[Bigram, float]:
    """The bigram of a whole split, and the discount that suits the last of its tokens best when
    only the tokens before them are counted."""
    bigram = Bigram(tokens.vocab_size)
    held_out = tokens.n_tokens - max(2, int(tokens.n_tokens * HELD_OUT))
    for start, end in _chunks(0, held_out):
        bigram.count(tokens.window(start, end - start))
    rest = tokens.window(held_out, tokens.n_tokens - held_out)[:CHUNK_TOKENS]
    discount = min(DISCOUNTS, key=lambda d: bigram.loss(rest[:-1], rest[1:], d))
    for start, end in _chunks(held_out - 1, tokens.n_tokens):
        bigram.count(tokens.window(start, end - start))
    return bigram, discount


def _chunks(start: int, end: int) -> list[tuple[int, int]]:
    """Stretches of tokens that overlap by one, so that each pair is in exactly one."""
    starts = range(start, end - 1, CHUNK_TOKENS)
    return [(first, min(first + CHUNK_TOKENS + 1, end)) for first in starts]


def add_options(parser: argparse.ArgumentParser) -> None:
    pass  # run_dir=FOLDER says which run


def run(options: argparse.Namespace) -> Report:
    config = _config_of_run(Path(make_config(options.overrides, {}).run_dir))
    reached, reached_tokens = _last_validation(Path(config.run_dir))
    data = open_data(config.data, config.model.vocab_size)
    bigram, discount = fit(data.train)
    first, second = _validation_pairs(config, data.validation)
    if len(second) != reached_tokens:
        raise UserError(
            f"run_dir: the run was validated on {reached_tokens:,} tokens, its config gives "
            f"{len(second):,} now; run it again"
        )
    loss = bigram.loss(first, second, discount)
    beaten = reached < loss
    rows = [
        [name, f"{value:.4f}", f"{math.exp(value):.2f}"]
        for name, value in (("bigram", loss), (config.run_name, reached))
    ]
    text = "\n".join(
        [
            f"{data.train.n_tokens:,} training tokens, {len(second):,} validation tokens, "
            f"discount {discount}",
            table(["", "validation loss", "perplexity"], rows),
            "the run beats the bigram" if beaten else "the run does not beat the bigram",
        ]
    )
    figures = {
        "run_dir": config.run_dir,
        "train_tokens": data.train.n_tokens,
        "validation_tokens": len(second),
        "discount": discount,
        "bigram_loss": loss,
        "run_loss": reached,
        "difference": loss - reached,
    }
    return Report(figures, text, EXIT_DONE if beaten else EXIT_FAULT)


def _config_of_run(run_dir: Path) -> Config:
    """The config that the run was made with, so that its data and evaluation are the same."""
    path = run_dir / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"run_dir: no run in {run_dir} ({path.name} cannot be read); train one first with "
            "`cola-train`, or name another with run_dir=FOLDER"
        ) from error
    return load(values | {"run_dir": str(run_dir)})


def _last_validation(run_dir: Path) -> tuple[float, int]:
    """Loss and number of tokens of the run's last validation."""
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "val_loss" in line]
    if not lines or lines[-1]["val_loss"] is None:
        raise UserError(
            f"run_dir: {run_dir / 'metrics.jsonl'} has no validation loss; let the run finish"
        )
    return lines[-1]["val_loss"], int(lines[-1]["val_tokens"])


def _validation_pairs(config: Config, dataset: TokenDataset) -> tuple[np.ndarray, np.ndarray]:
    """Each token that the trainer's validation predicts, and the one before it: (n,) each."""
    batches = evaluation_batches(
        dataset,
        sequence_length=config.train.sequence_length,
        micro_batch_size=config.evaluation.batch_size,
        rank=0,
        world_size=1,
        packing=config.data.packing,
        with_documents=False,
        max_tokens=config.evaluation.tokens,
    )
    pairs = [
        (batch.inputs[predicted].numpy(), batch.targets[predicted].numpy())
        for batch in batches
        for predicted in [batch.targets != IGNORE_INDEX]
    ]
    first, second = zip(*pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)


BENCHMARK = Benchmark("a bigram model's validation loss beside a run's", add_options, run)
