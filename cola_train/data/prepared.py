"""A prepared corpus, opened by all processes of a run together."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cola_train.data.dataset import TokenDataset
from cola_train.data.inputs import SPLITS, Split
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.shards import MANIFEST, TOKENIZER, read_manifest
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError

# While one process prepares, the others wait in a collective, which would time out.
HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True)
class PreparedData:
    train: TokenDataset
    validation: TokenDataset
    tokenizer: Tokenizer

    @property
    def tokenizer_sha256(self) -> str:
        """Of its file, in hex."""
        digest: str = read_manifest(self.train.folder)["tokenizer"]["sha256"]
        return digest


def open_data(
    data: DataOptions, model_vocab_size: int | None = None, progress: bool = True
) -> PreparedData:
    """Open the shards of a corpus, after preparing them where needed.

    In a process group rank 0 prepares while the others wait, and all fail together.

    Raises:
        UserError: on every process, with the problem of the first that had one.
    """
    folder = _prepared(data, model_vocab_size, progress, None)
    train, validation = _open_together(folder, SPLITS, data.verify)
    return PreparedData(train, validation, tokenizer_of(folder))


def open_split(
    data: DataOptions,
    split: Split,
    model_vocab_size: int | None = None,
    progress: bool = True,
) -> TokenDataset:
    """The same for one split: a corpus need not have the other, which is not read if its files
    are others."""
    folder = _prepared(data, model_vocab_size, progress, split)
    (opened,) = _open_together(folder, (split,), data.verify)
    return opened


def _open_together(folder: Path, splits: Sequence[Split], verify: bool) -> list[TokenDataset]:
    import torch.distributed as dist

    if not _in_a_group():
        return _open(folder, splits, verify)
    opened: list[TokenDataset] = []
    try:
        opened = _open(folder, splits, verify, dist.get_rank(), dist.get_world_size())
        outcome: object = [dataset.fingerprint for dataset in opened]
    except UserError as error:
        outcome = error
    outcomes: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    for rank, theirs in enumerate(outcomes):
        if isinstance(theirs, UserError):
            raise UserError(*(f"process {rank}: {problem}" for problem in theirs.problems))
        if theirs != outcomes[0]:
            raise UserError(
                f"{folder}: process {rank} sees other tokens there than process 0: put "
                "data.cache_dir (data.path) on a file system that all nodes share"
            )
    return opened


def _open(
    folder: Path, splits: Sequence[Split], verify: bool, part: int = 0, parts: int = 1
) -> list[TokenDataset]:
    opened = [TokenDataset.open(folder, split) for split in splits]
    for dataset in opened if verify else []:
        dataset.verify(part, parts)
    tokenizer_of(folder)  # is what made them
    return opened


def tokenizer_of(folder: Path) -> Tokenizer:
    """The one that made the tokens there. Raises UserError if it is damaged."""
    manifest, path = read_manifest(folder), folder / TOKENIZER
    fix = "copy it anew, or delete it and run cola-prepare again with the settings that made it"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {fix}") from error
    if digest != manifest["tokenizer"]["sha256"]:
        raise UserError(
            f"{path}: its checksum differs: it is not the one that made these tokens: {fix}"
        )
    tokenizer = Tokenizer.load(str(path))
    if tokenizer.vocab_size != manifest["vocab_size"]:
        raise UserError(
            f"{folder / MANIFEST}: vocab_size is {manifest['vocab_size']}, and {TOKENIZER} has "
            f"{tokenizer.vocab_size}: {fix}"
        )
    return tokenizer


def _in_a_group() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _prepared(
    data: DataOptions, model_vocab_size: int | None, progress: bool, only: Split | None
) -> Path:
    if not _in_a_group():
        return prepare(data, model_vocab_size, progress, only=only)
    return _prepare_on_one(data, model_vocab_size, progress, only)


def _prepare_on_one(
    data: DataOptions, model_vocab_size: int | None, progress: bool, only: Split | None
) -> Path:
    import torch.distributed as dist

    # What rank 0 tells the others: None while it works, then the folder or its error.
    def tell(news: object) -> object:
        message = [news]
        dist.broadcast_object_list(message, src=0)
        return message[0]

    news: object = None
    if dist.get_rank() == 0:
        try:
            keep_alive = _every(HEARTBEAT_SECONDS, tell)
            news = prepare(data, model_vocab_size, progress, keep_alive, only)
        except Exception as error:
            news = error if isinstance(error, UserError) else RuntimeError(repr(error))
            tell(news)
            raise
        tell(news)
    else:
        while news is None:
            news = tell(None)
    if isinstance(news, Exception):
        raise news
    assert isinstance(news, Path)
    return news


def _every(seconds: float, tell: Callable[[object], object]) -> Callable[[], None]:
    last = time.monotonic()

    def keep_alive() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            tell(None)
            last = time.monotonic()

    return keep_alive
