"""Text through a model, and the spectra of what flowed through its linears."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cola_train import distributed
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import Batch, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.errors import UserError
from cola_train.model.loss import IGNORE_INDEX
from cola_train.progress import Bar
from cola_train.spectra.recorder import Linear, Measured, Recorder
from cola_train.spectra.subject import Subject


@dataclass(frozen=True)
class Amount:
    """tokens: about as many come by; None: all. length: of a sequence. batch_size: sequences of a
    process at a time."""

    tokens: int | None
    length: int
    batch_size: int


def batches_of(
    subject: Subject, dataset: TokenDataset, data: DataOptions, amount: Amount
) -> Iterator[Batch]:
    """This process's. A row of padding alone is left out, unless there is no other.

    Raises:
        UserError: the text is shorter than a sequence.
    """
    batches = evaluation_batches(
        dataset,
        sequence_length=amount.length,
        micro_batch_size=amount.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        packing=data.packing,
        with_documents=subject.at_speed is not None and data.masks_documents(subject.at_speed),
        max_tokens=amount.tokens,
    )
    most = min(amount.tokens or dataset.n_tokens, dataset.n_tokens)
    done, main = 0, distributed.is_main()
    with Bar("Reading", most, unit="tokens", shown=main) as bar:
        for batch in own_option(batches):
            used = (batch.targets != IGNORE_INDEX).any(1)
            used[0] |= not used.any()
            documents = None if batch.documents is None else batch.documents[used]
            yield Batch(batch.inputs[used], batch.targets[used], documents)
            done += batch.targets.numel() * distributed.world_size()
            bar.show(min(done, most), f"{min(done, most):,} tokens")


def own_option(batches: Iterator[Batch]) -> Iterator[Batch]:
    """What is a run's option in a problem there is one of the command's."""
    try:
        yield from batches
    except UserError as error:
        own = (each.replace("train.sequence_length", "sequence_length") for each in error.problems)
        raise UserError(*own) from error


@torch.no_grad()
def measure(
    subject: Subject,
    batches: Iterator[Batch],
    alpha: float,
    layers: Sequence[int],
) -> tuple[list[Measured], int]:
    """Spectra of the linears of these blocks, and the number of tokens that came by; of all
    processes together, each of which brings its own batches.

    Raises:
        UserError: as `Recorder.spectra` does.
    """
    recorder = Recorder()
    linears: list[Linear] = [each for each in subject.linears if each.layer in layers]
    with subject.watch(recorder, layers):
        for batch in batches:
            recorder.next_batch(batch.targets != IGNORE_INDEX)
            subject.run(batch)
    (tokens,) = distributed.sum_over_ranks([recorder.positions])
    return recorder.spectra(linears, alpha), int(tokens)
