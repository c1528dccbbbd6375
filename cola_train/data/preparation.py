"""Text to token shards: `prepare` tokenises a corpus with all cores, once.

The input is cut into jobs, each one large file or a run of small ones (`jobs.py`). A later start
reuses every job that is whole, whichever signal ended the one before; the manifest comes last.
Nothing here imports torch, which would cost each worker seconds.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cola_train.data import tokenizer as tokenizers
from cola_train.data.inputs import SPLITS, InputFile, Split, content_digest
from cola_train.data.jobs import (
    POLL_SECONDS,
    Job,
    KeepAlive,
    Reading,
    Record,
    documents,
    run_jobs,
    utf8,
    with_both_splits,
)
from cola_train.data.locks import only_writer
from cola_train.data.options import BESIDE_THE_TOKENS, CorpusOptions, DataOptions, TextOptions
from cola_train.data.shards import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    Shard,
    disk_errors,
    fingerprint,
    read_manifest,
    token_dtype,
)
from cola_train.data.sources import READERS
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.files import TEMPORARY, write_json, write_text
from cola_train.progress import Bar, say

# Files smaller than this share a shard. It grows with the corpus, to keep shards few.
SMALL_FILE_BYTES = 4 << 20
SMALL_FILE_BYTES_MOST = 64 << 20
SHARDS_WANTED = 256

# How much of the corpus's bytes, and of each file's at least, the key of its shards looks at.
KEY_BYTES = 32 << 20
KEY_FILE_BYTES = 16 << 10

# Merges learnt from this much text are as good as from more; the corpus is sampled file by file.
TOKENIZER_TRAINING_BYTES = 64 << 20
LOSS_SAMPLE_BYTES = 4 << 20  # looked at for characters that a tokenizer has no token for


def prepare(
    data: DataOptions,
    model_vocab_size: int | None = None,
    progress: bool = True,
    keep_alive: KeepAlive | None = None,
    only: Split | None = None,
) -> Path:
    """Make the token shards of a corpus, or find them made, and return their folder.

    Safe to interrupt at any moment and to run twice at once; finished shards are reused.
    `keep_alive` is called about five times a second while there is work. `only`: a split that is
    enough; files of the other are left unread, which the folder then may be without.

    Raises:
        UserError: a mistake in the configuration, an unreadable file, a full disk, a tokenizer
            larger than `model_vocab_size`.
    """
    if found := problems(data, model_vocab_size, only):
        raise UserError(*found)
    source = READERS[type(data)]
    if source.folder is not None:
        return source.folder(data)
    assert isinstance(data, CorpusOptions)
    files = source.files(data)
    for note in source.notes(data):
        say(note)
    folder = _folder(data, files)
    if only is not None and not is_complete(folder):
        files = [file for file in files if file.split in (None, only)]
        folder = _folder(data, files)
    if not is_complete(folder):
        keep_alive = keep_alive or (lambda: None)
        with _only_writer(folder, keep_alive):
            if not is_complete(folder):  # another process may have finished it meanwhile
                divided = files[0].split is None
                needed = SPLITS if only is None or divided else (only,)
                _write(data, model_vocab_size, files, folder, progress, keep_alive, needed)
    given = f"data.tokenizer={data.tokenizer}"
    _check_fit(given, read_manifest(folder)["vocab_size"], model_vocab_size)
    return folder


def prepared_before(data: DataOptions) -> Path | None:
    """The folder of a corpus whose shards are all there; None if there is work to do.

    Raises:
        UserError: a mistake in the configuration.
    """
    source = READERS[type(data)]
    if source.folder is not None:
        return source.folder(data)
    assert isinstance(data, CorpusOptions)
    folder = _folder(data, source.files(data))
    return folder if is_complete(folder) else None


def problems(
    data: DataOptions, model_vocab_size: int | None = None, only: Split | None = None
) -> list[str]:
    """Mistakes in the configuration that show without reading the corpus or a download."""
    source = READERS[type(data)]
    found: list[str] = []
    if isinstance(data, TextOptions) and not data.files:
        if only != "validation":
            found.append(
                "data.files: empty: name the training files or their folder, data.files=[corpus]"
            )
        elif not data.validation_files:
            found.append("data.validation_files: empty: name files, or a folder of them")
    try:
        if source.folder is None:
            source.files(data)
        else:
            path = source.folder(data)
            _check_fit(f"data.path={path}", read_manifest(path)["vocab_size"], model_vocab_size)
    except UserError as error:
        found += error.problems
    if isinstance(data, CorpusOptions):
        found += tokenizers.problems(data.tokenizer, data.vocab_size, model_vocab_size)
    return found


def _check_fit(given: str, vocab_size: int, model_vocab_size: int | None) -> None:
    """given: the option that decides the tokenizer, and its value."""
    if model_vocab_size is not None and vocab_size > model_vocab_size:
        raise UserError(tokenizers.does_not_fit(given, vocab_size, model_vocab_size))


def _folder(data: CorpusOptions, files: list[InputFile]) -> Path:
    return Path(data.cache_dir) / f"{data.source}-{_key(data, files)}"


def _key(data: CorpusOptions, files: list[InputFile]) -> str:
    """A hash of all that decides the shards' content, as far as a short look shows it."""
    tokenizer: dict[str, object] = {"name": data.tokenizer}
    if data.tokenizer == tokenizers.TRAIN:
        tokenizer["vocab_size"] = data.vocab_size
    elif path := tokenizers.local_file(data.tokenizer):
        tokenizer = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    most = max(KEY_FILE_BYTES, KEY_BYTES // max(1, len(files)))
    inputs = [(f.name, f.split, f.size, f.modified_ns, content_digest(f, most)) for f in files]
    decides = [FORMAT, data.source, data.text_field, data.validation_fraction, tokenizer, inputs]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def is_complete(folder: Path) -> bool:
    """Whether all that its manifest names is there."""
    if not (folder / MANIFEST).exists() or not (folder / TOKENIZER).exists():
        return False
    try:
        splits = read_manifest(folder)["splits"].values()
    except UserError:
        return False  # it is written again
    shards = [Shard.from_json(values) for split in splits for values in split["shards"]]
    return not any(file.problem(folder) for shard in shards for file in shard.files)


@contextlib.contextmanager
def _only_writer(folder: Path, keep_alive: KeepAlive) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with disk_errors(folder):
            locked = stack.enter_context(only_writer(folder, keep_alive))
        if locked:  # then whoever left these is gone
            for leftover in folder.glob(f"*{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)
        yield


def _write(
    data: CorpusOptions,
    model_vocab_size: int | None,
    files: list[InputFile],
    folder: Path,
    progress: bool,
    keep_alive: KeepAlive,
    needed: Sequence[Split] = SPLITS,
) -> None:
    reading = Reading(data.source, data.text_field, data.validation_fraction)
    files = with_both_splits(files, reading, keep_alive)
    path = folder / TOKENIZER
    if path.exists():
        tokenizer = Tokenizer.load(str(path))
    else:
        if data.tokenizer == tokenizers.TRAIN:
            tokenizer = _train(data.vocab_size, files, reading, progress, keep_alive)
        else:
            tokenizer = Tokenizer.load(data.tokenizer)
            _say_what_is_lost(tokenizer, data.tokenizer, files, reading, keep_alive)
        with disk_errors(folder):
            for record in folder.glob("job-*.json"):  # of shards made with a tokenizer since lost
                record.unlink()
            write_text(path, tokenizer.to_json())
    _check_fit(f"data.tokenizer={data.tokenizer}", tokenizer.vocab_size, model_vocab_size)
    workers = data.workers or os.cpu_count() or 1
    records = run_jobs(_cut(files), reading, folder, workers, progress, keep_alive)
    _check_splits(data, files, records, needed)
    with disk_errors(folder):
        write_json(folder / MANIFEST, _manifest(data, tokenizer, records, folder))


def _train(
    vocab_size: int,
    files: list[InputFile],
    reading: Reading,
    progress: bool,
    keep_alive: KeepAlive,
) -> Tokenizer:
    """A tokenizer of the corpus. In a thread, for all but reading is one call of its library."""
    what = f"Training a tokenizer of {vocab_size:,} tokens"
    total = min(sum(file.size for file in files), TOKENIZER_TRAINING_BYTES)
    stopped = threading.Event()
    read = 0
    with (
        Bar(what, total, unit="B", shown=progress) as bar,
        ThreadPoolExecutor(1, "tokenizer") as thread,
    ):

        def sample() -> Iterator[str]:
            nonlocal read
            for text, size in _training_sample(files, reading, TOKENIZER_TRAINING_BYTES):
                if stopped.is_set():
                    raise InterruptedError
                read += size
                yield text

        training = thread.submit(Tokenizer.train, sample(), vocab_size)
        try:
            while not wait([training], POLL_SECONDS).done:
                keep_alive()
                bar.show(read, f"{read / 1e6:.1f} MB read")
            bar.show(total, f"{read / 1e6:.1f} MB read")
        finally:
            stopped.set()
        return training.result()


def _say_what_is_lost(
    tokenizer: Tokenizer,
    name: str,
    files: list[InputFile],
    reading: Reading,
    keep_alive: KeepAlive,
) -> None:
    def sample() -> Iterator[str]:
        for text, _ in _training_sample(files, reading, LOSS_SAMPLE_BYTES):
            keep_alive()
            yield text

    lost, total = tokenizer.lost(sample())
    if lost:
        examples = ", ".join(repr(character) for character, _ in lost.most_common(5))
        say(
            f"data.tokenizer={name}: no token for {100 * lost.total() / total:.2g} % of the "
            f"text's characters, {examples}: they are left out; a byte-level tokenizer, or one "
            "with an unknown token, keeps them"
        )


def _training_sample(
    files: list[InputFile], reading: Reading, most: int
) -> Iterator[tuple[str, int]]:
    """Training documents of files in a fixed mixed order, up to `most` bytes; their UTF-8 bytes."""
    mixed = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file.name)).digest())
    used = 0
    for split, text in documents(mixed, reading, only="train"):
        if split == "train":
            text, size = utf8(text)
            yield text, size
            used += size
        if used >= most:
            return


def _cut(files: list[InputFile]) -> list[Job]:
    total = sum(file.size for file in files)
    small = min(max(SMALL_FILE_BYTES, total // SHARDS_WANTED), SMALL_FILE_BYTES_MOST)
    groups: list[list[InputFile]] = [[]]
    size = 0
    for file in files:
        if size + file.size > small and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size
    return [Job(index, tuple(group)) for index, group in enumerate(groups)]


def _check_splits(
    data: CorpusOptions, files: list[InputFile], records: list[Record], needed: Sequence[Split]
) -> None:
    """Those needed have text."""
    counts = {s: sum(r[s].n_documents for r in records if s in r) for s in SPLITS}
    total = sum(counts.values())
    empty = next((split for split in needed if counts[split] == 0), None)
    if empty is None:
        return
    text = isinstance(data, TextOptions)
    option = "data.files" if text else f"data.source={data.source}"
    if total and files[0].split is None:  # a single one, which cannot be divided
        other = ", or name data.validation_files" if text else ""
        raise UserError(
            f"{option}: a single document in all, and training and validation need one each: give "
            f"more text{other}"
        )
    if text and empty == "validation":
        option = "data.validation_files"
    of_split = [file.location for file in files if file.split in (None, empty)]
    raise UserError(
        f"{option}: the {'training' if empty == 'train' else empty} files hold no text "
        f"({of_split[0]}, {len(of_split)} in all): give files that do"
    )


def _manifest(
    data: CorpusOptions, tokenizer: Tokenizer, records: list[Record], folder: Path
) -> dict[str, Any]:
    tokenizer_sha256 = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        shards = [record[split] for record in records if split in record]
        splits[split] = {
            "fingerprint": fingerprint(tokenizer_sha256, tokenizer.eos_id, shards),
            "n_tokens": sum(shard.n_tokens for shard in shards),
            "n_documents": sum(shard.n_documents for shard in shards),
            "bytes_of_text": sum(shard.bytes_of_text for shard in shards),
            "shards": [shard.to_json() for shard in shards],
        }
    beside = ("source", *BESIDE_THE_TOKENS)
    given = {name: value for name, value in data.given().items() if name not in beside}
    return {
        "format": FORMAT,
        "source": data.source,
        "options": given,  # for people
        "tokenizer": {"name": data.tokenizer, "sha256": tokenizer_sha256},
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "splits": splits,
    }
