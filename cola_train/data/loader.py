"""From tokens to batches: packing, this process's share of each step, and a resumable position.

Legend: B sequences of a micro-batch, T sequence length.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cola_train.data.dataset import TokenDataset
from cola_train.data.options import BESIDE_THE_TOKENS
from cola_train.data.order import shuffled
from cola_train.errors import UserError
from cola_train.model.loss import IGNORE_INDEX


@dataclass
class Batch:
    """One micro-batch.

    inputs: (B, T) int64.
    targets: (B, T) int64, the token after each input; IGNORE_INDEX where there is no loss.
    documents: (B, T) int32, which document of its row an input belongs to, from 0 and never
        decreasing; None where attention need not be kept within documents.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """The same there; a copy from pinned memory goes on in the background."""
        documents = self.documents
        return Batch(
            self.inputs.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            None if documents is None else documents.to(device, non_blocking=True),
        )


def packed_sample(dataset: TokenDataset, index: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, (T,) each: the split as one stream, cut every T tokens."""
    window = dataset.window(index * length, length + 1)
    return window[:-1], window[1:]


def document_sample(
    dataset: TokenDataset, index: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, at most (T,) and one shorter: a document, cut where it is too long.

    As in the paper's recipe, T tokens give T - 1 predictions, and a cut document too ends in the
    end-of-document token: `transformers` cuts a T5 text to T - 1 tokens and then adds `</s>`.
    """
    tokens = dataset.document(index, longest=length + 1)
    if len(tokens) > length:
        tokens = np.append(tokens[: length - 1], tokens.dtype.type(dataset.eos_id))
    return tokens, tokens[1:]


PACKINGS = {"packed": packed_sample, "per_document": document_sample}


def count_samples(dataset: TokenDataset, packing: str, sequence_length: int) -> int:
    """Sequences in one epoch."""
    if packing == "per_document":
        return dataset.n_documents
    return (dataset.n_tokens - 1) // sequence_length


def check_predictions(*datasets: TokenDataset, packing: str, sequence_length: int) -> None:
    """Before the first step: each split has something to predict.

    Raises:
        UserError: naming each that has no sequence, or none with a token to predict.
    """
    problems = []
    for dataset in datasets:
        split = f"{dataset.folder}: the {dataset.split} split"
        if count_samples(dataset, packing, sequence_length) == 0:
            problems.append(
                f"{split} has {dataset.n_tokens} tokens, fewer than one sequence of "
                f"{sequence_length}: add text or lower train.sequence_length"
            )
        elif packing == "per_document" and (
            dataset.n_tokens == dataset.n_documents or sequence_length == 1
        ):
            problems.append(
                f"{split} has no token to predict: with data.packing={packing} and "
                f"train.sequence_length={sequence_length} each of its {dataset.n_documents} "
                "documents is a single token: set data.packing=packed, or change the text, "
                "data.tokenizer or train.sequence_length"
            )
    if problems:
        raise UserError(*problems)


class Collator:
    """Makes batches of given samples; -1 stands for a row that is all padding."""

    def __init__(
        self, dataset: TokenDataset, packing: str, sequence_length: int, with_documents: bool
    ) -> None:
        self._dataset = dataset
        self._sample = PACKINGS[packing]
        self._length = sequence_length
        # With one document a row, and padding after it, causal attention needs no mask.
        self._with_documents = with_documents and packing == "packed"
        self._pin = torch.cuda.is_available()

    def __call__(self, indices: np.ndarray) -> Batch:
        shape = (len(indices), self._length)
        inputs = np.full(shape, self._dataset.eos_id, dtype=np.int64)
        targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            if index >= 0:
                row_inputs, row_targets = self._sample(self._dataset, index, self._length)
                inputs[row, : row_inputs.size] = row_inputs
                targets[row, : row_targets.size] = row_targets
        documents = None
        if self._with_documents:
            ends = inputs == self._dataset.eos_id
            documents = self._tensor((np.cumsum(ends, axis=1) - ends).astype(np.int32))
        return Batch(self._tensor(inputs), self._tensor(targets), documents)

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pin else tensor


class BatchLoader:
    """Endless shuffled training batches.

    Sample g of the run is sample `g mod n` of epoch `g div n`, in that epoch's order, so the
    number of samples consumed is the whole position: it resumes at once, on any number of
    processes. One step takes `batch_size` samples; each process takes an equal run of them.

    samples: global samples consumed so far.
    options: the data's, by name; for words about what differs from a saved run's.

    Raises:
        UserError: the split has fewer sequences than one step takes.
        ValueError: batch_size is not a multiple of world_size · micro_batch_size.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        sequence_length: int,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        packing: str,
        with_documents: bool,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size % (world_size * micro_batch_size):
            raise ValueError(
                f"batch_size={batch_size} is not a multiple of world_size={world_size} x "
                f"micro_batch_size={micro_batch_size}"
            )
        self._n = count_samples(dataset, packing, sequence_length)
        if self._n < batch_size:
            raise UserError(
                f"{dataset.folder}: corpus shorter than one batch: the {dataset.split} split makes "
                f"{self._n} sequences of {sequence_length} tokens, one step takes {batch_size}: "
                "add text, or lower train.batch_size or train.sequence_length"
            )
        self.samples = 0
        self._batch_size = batch_size
        self._micro_batch_size = micro_batch_size
        share = batch_size // world_size
        self._share = range(rank * share, (rank + 1) * share)
        self._identity: dict[str, Any] = {
            "data": dataset.fingerprint,
            "seed": seed,
            "data.packing": packing,
            "train.sequence_length": sequence_length,
        }
        self._folder, self._options = dataset.folder, options or {}
        self._seed = seed
        self._collate = Collator(dataset, packing, sequence_length, with_documents)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: Future[list[Batch]] | None = None

    def next(self) -> list[Batch]:
        """This process's micro-batches of the next step; the step after is begun meanwhile."""
        ahead = self._ahead or self._thread.submit(self._step, self.samples)
        batches = ahead.result()
        self.samples += self._batch_size
        self._ahead = self._thread.submit(self._step, self.samples)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """The position, what the order depends on, and where the data were. JSON can hold it."""
        folder = str(self._folder.absolute())
        return {"samples": self.samples, **self._identity, "folder": folder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position; `state["options"]`: the data's then, if they are known.

        Raises:
            UserError: the data, seed, packing or sequence length differ from the saved run's.
        """
        problems = [
            _other_data(state, self._identity["data"], self._options)
            if field == "data"
            else f"{field}: the checkpoint was made with {state.get(field)!r}, this run has "
            f"{value!r}: set {field} as before, or start a new run"
            for field, value in self._identity.items()
            if state.get(field) != value
        ]
        if problems:
            raise UserError(*problems)
        self.samples = int(state["samples"])
        self._ahead = None

    def close(self) -> None:
        """Stop the thread that reads ahead."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _step(self, first: int) -> list[Batch]:
        taken = first + np.asarray(self._share, dtype=np.int64)
        epochs, positions = np.divmod(taken, self._n)
        indices = np.empty_like(taken)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = shuffled(positions[here], self._n, self._seed, epoch)
        size = self._micro_batch_size
        return [self._collate(indices[i : i + size]) for i in range(0, indices.size, size)]


def _other_data(state: Mapping[str, Any], fingerprint: str, options: Mapping[str, Any]) -> str:
    """Words for a checkpoint whose run had other tokens than this one."""
    before = state.get("options") or {}
    names = [n for n in {**before, **options} if n not in BESIDE_THE_TOKENS]
    different = [n for n in names if (before.get(n) or None) != (options.get(n) or None)]

    def shown(values: Mapping[str, Any]) -> str:
        given = {n: "null" if values[n] is None else values[n] for n in different if n in values}
        words = " ".join(f"data.{name}={value}" for name, value in given.items())
        return words or "none of these options"

    if not (before and options):
        why = f"their fingerprint was {state.get('data')!r}, and is {fingerprint!r}"
        fix = "give the same text and tokenizer as before"
    elif different:
        why, fix = f"it began with {shown(before)}, and this has {shown(options)}", "set these back"
    else:
        why = "the options are the same, so the files (or the tokenizer's) have changed since"
        fix = "bring the files back"
    if (folder := state.get("folder")) and Path(folder).is_dir():
        fix += f", or read the tokens of then, data=tokens data.path={folder}"
    return (
        f"data: not the text and tokenizer of the run in the checkpoint: {why}: {fix}, or start a "
        "new run (another run_name)"
    )


def evaluation_batches(
    dataset: TokenDataset,
    *,
    sequence_length: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    packing: str,
    with_documents: bool,
    max_tokens: int | None,
) -> Iterator[Batch]:
    """This process's batches of the first sequences that make up to `max_tokens` predictions.

    The sequences are the same, each exactly once, on any number of processes, and every process
    yields equally many batches: rows of padding without targets fill them up.

    Raises:
        UserError: the split is shorter than one sequence, or has nothing to predict.
    """
    check_predictions(dataset, packing=packing, sequence_length=sequence_length)
    n = count_samples(dataset, packing, sequence_length)
    if max_tokens is not None:
        n = _samples_within(dataset, packing, sequence_length, max_tokens)
    collate = Collator(dataset, packing, sequence_length, with_documents)
    micro_batch_size = min(micro_batch_size, -(-n // world_size))  # no more rows than there are
    together = world_size * micro_batch_size
    for first in range(rank * micro_batch_size, rank * micro_batch_size + n, together):
        indices = np.arange(first, first + micro_batch_size)
        yield collate(np.where(indices < n, indices, -1))


def _samples_within(
    dataset: TokenDataset, packing: str, sequence_length: int, max_tokens: int
) -> int:
    """How many of the first sequences make up to `max_tokens` predictions; enough for one."""
    if packing == "packed":
        return min(
            max(1, max_tokens // sequence_length), count_samples(dataset, packing, sequence_length)
        )
    predictions = np.cumsum(np.minimum(dataset.document_lengths(), sequence_length) - 1)
    within, without = np.searchsorted(predictions, [max_tokens, 0], side="right")
    return int(max(within, without + 1))
