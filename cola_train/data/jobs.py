"""The work of preparing: jobs that turn files into shards, run in as many processes as asked.

A job leaves one shard for each split it has documents of, and then its record, `job-00000.json`:
a job whose record and shards are there is done. What a job writes depends on its files alone, so
any number of processes gives the same bytes. Nothing here imports torch.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cola_train.data.inputs import SPLITS, InputFile, Split
from cola_train.data.shards import (
    SHARD_SHAPE,
    TOKENIZER,
    Shard,
    ShardWriter,
    disk_errors,
    token_dtype,
    wrong,
)
from cola_train.data.sources import read_documents
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError
from cola_train.files import read_json, write_json
from cola_train.progress import Bar

BATCH_BYTES = 1 << 20  # text tokenised at a time: bounds memory, and how late a stop is heard
POLL_SECONDS = 0.2

KeepAlive = Callable[[], None]
Record = dict[Split, Shard]


@dataclass(frozen=True)
class Reading:
    """What of the configuration decides which documents a file gives, and to which split."""

    source: str
    text_field: str
    validation_fraction: float


@dataclass(frozen=True)
class Job:
    index: int
    files: tuple[InputFile, ...]

    @property
    def record(self) -> str:
        # not that of the same files divided otherwise, which an earlier version may have left
        given = "-given" if any(file.due is not None for file in self.files) else ""
        return f"job-{self.index:05d}{given}.json"


def documents(
    files: Iterable[InputFile], reading: Reading, only: Split | None = None
) -> Iterator[tuple[Split, str]]:
    """Documents and their splits, in order; `only` leaves the files of the other split unread."""
    for file in files:
        if only is not None and file.split not in (None, only):
            continue
        # Every 1/fraction-th document is for validation, from a start that the file's name
        # decides: so the share is right for files of one document and of millions alike.
        due = file.first_due()
        for text in read_documents(reading.source, file, reading.text_field):
            if not text:
                continue
            split = file.split
            if split is None:
                due += reading.validation_fraction
                split = "validation" if due >= 1 else "train"
                due %= 1
            yield split, text


def with_both_splits(
    files: list[InputFile], reading: Reading, keep_alive: KeepAlive
) -> list[InputFile]:
    """The files, one of them given another `due` if else all documents fell to one split: the file
    that came closest then gives its first document to the other. A single document stays alone.

    Reads until it has seen both splits, which is soon in a large corpus.
    """
    first: Split | None = None
    holding: list[InputFile] = []  # text
    several = False
    for file in files:
        if file.split is not None:  # they are not divided
            return files
        for split, _ in documents([file], reading):
            keep_alive()
            several = first is not None
            first = first or split
            if split != first:
                return files
            if holding[-1:] != [file]:
                holding.append(file)
    if not several:
        return files
    closest, due = (max, 1.0) if first == "train" else (min, 0.0)
    chosen = closest(holding, key=InputFile.first_due)
    return [replace(file, due=due) if file is chosen else file for file in files]


def utf8(text: str) -> tuple[str, int]:
    """The text, its lone surrogates (JSON can hold them) replaced, and its bytes in UTF-8."""
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "replace")
        return encoded.decode(), len(encoded)


def run_jobs(
    jobs: list[Job],
    reading: Reading,
    folder: Path,
    workers: int,
    progress: bool,
    keep_alive: KeepAlive,
) -> list[Record]:
    records = {job.index: record for job in jobs if (record := _finished(job, folder)) is not None}
    todo = [job for job in jobs if job.index not in records]
    started = time.monotonic()
    note = ""
    with Bar("Tokenising", len(jobs), len(records), unit="shard", shown=progress) as bar:

        def report(n_tokens: int) -> None:
            nonlocal note
            rate = n_tokens / max(time.monotonic() - started, 1e-9)
            note = f"{n_tokens / 1e6:.1f}M tokens, {rate / 1e6:.2f}M/s"
            bar.show(len(records), note)
            keep_alive()

        run = _in_this_process if min(workers, len(todo)) <= 1 else _in_processes
        for job, record in run(todo, reading, folder, workers, report):
            records[job.index] = record
            bar.show(len(records), note)
    return [records[job.index] for job in jobs]


def _finished(job: Job, folder: Path) -> Record | None:
    """The record of a job that was done before, if all it wrote is still there."""
    try:
        values = read_json(folder / job.record)
    except (OSError, ValueError):
        return None
    known = isinstance(values, dict) and values.keys() <= set(SPLITS)
    if not known or any(wrong(shard, SHARD_SHAPE) for shard in values.values()):
        return None
    record: Record = {split: Shard.from_json(shard) for split, shard in values.items()}
    whole = not any(file.problem(folder) for shard in record.values() for file in shard.files)
    return record if whole else None


def _in_this_process(
    jobs: list[Job], reading: Reading, folder: Path, workers: int, report: Callable[[int], None]
) -> Iterator[tuple[Job, Record]]:
    tokenizer = Tokenizer.load(str(folder / TOKENIZER))
    total = 0

    def count(n_tokens: int) -> None:
        nonlocal total
        total += n_tokens
        report(total)

    for job in jobs:
        yield job, _run_job(job, reading, folder, tokenizer, count)


def _in_processes(
    jobs: list[Job], reading: Reading, folder: Path, workers: int, report: Callable[[int], None]
) -> Iterator[tuple[Job, Record]]:
    # Spawned, not forked: the caller may have threads (tokenizers, torch, the GPU).
    context = multiprocessing.get_context("spawn")
    processes = min(workers, len(jobs))
    with contextlib.ExitStack() as stack:
        with _process_errors(processes):  # handing out too fails once a worker has died
            counter = context.Value("q", 0)
            # No one writes to this pipe. Its end tells the workers that this process stopped or
            # died.
            leash, leash_holder = context.Pipe(duplex=False)
            arguments = (leash, counter, reading, folder, max(1, workers // processes))
            stack.enter_context(leash)
            pool = stack.enter_context(
                ProcessPoolExecutor(processes, context, _start_worker, arguments)
            )
            stack.enter_context(leash_holder)
            pending: dict[Future[Record], Job] = {pool.submit(_run_in_worker, j): j for j in jobs}
        while pending:
            done, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            report(counter.value)
            for future in done:
                with _process_errors(processes):
                    record = future.result()
                yield pending.pop(future), record


@contextlib.contextmanager
def _process_errors(processes: int) -> Iterator[None]:
    """Processes that die or cannot be started are the user's to fix: by fewer of them."""
    fix = f"start again with fewer, data.workers={max(1, processes // 2)}; finished shards are kept"
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(f"a process that tokenises died (out of memory?): {fix}") from error
    except OSError as error:
        raise UserError(
            f"cannot start {processes} processes to tokenise ({error}): {fix}"
        ) from error


@dataclass
class _Worker:
    counter: Any  # a shared integer: the tokens of all workers
    reading: Reading
    folder: Path
    tokenizer: Tokenizer


_worker: _Worker | None = None


def _start_worker(
    leash: Connection, counter: Any, reading: Reading, folder: Path, threads: int
) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the leash
    threading.Thread(target=_exit_with_parent, args=(leash,), daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of `tokenizers`, read when it starts
    _worker = _Worker(counter, reading, folder, Tokenizer.load(str(folder / TOKENIZER)))


def _exit_with_parent(leash: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        leash.recv_bytes()
    os._exit(1)


def _run_in_worker(job: Job) -> Record:
    worker = _worker
    assert worker is not None

    def count(n_tokens: int) -> None:
        with worker.counter.get_lock():
            worker.counter.value += n_tokens

    return _run_job(job, worker.reading, worker.folder, worker.tokenizer, count)


def _run_job(
    job: Job,
    reading: Reading,
    folder: Path,
    tokenizer: Tokenizer,
    count: Callable[[int], None],
) -> Record:
    """Tokenise a job's files; write its shards, then its record."""
    dtype = token_dtype(tokenizer.vocab_size)
    writers: dict[Split, ShardWriter] = {}
    with disk_errors(folder):
        try:
            for split, texts, size in _batches(documents(job.files, reading)):
                if split not in writers:
                    name = f"{split}-{job.index:05d}"
                    writers[split] = ShardWriter(folder, name, dtype, tokenizer.eos_id)
                ids = tokenizer.encode_batch(texts)
                writers[split].add(ids, size)
                count(sum(document.size + 1 for document in ids))
            record = {split: writers[split].finish() for split in SPLITS if split in writers}
            write_json(folder / job.record, {s: shard.to_json() for s, shard in record.items()})
        except BaseException:
            for writer in writers.values():
                writer.abandon()
            raise
    return record


def _batches(documents: Iterable[tuple[Split, str]]) -> Iterator[tuple[Split, list[str], int]]:
    """Documents of one split together, about BATCH_BYTES of them, and their UTF-8 bytes."""
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    sizes: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for split, text in documents:
        text, size = utf8(text)
        texts[split].append(text)
        sizes[split] += size
        if sizes[split] >= BATCH_BYTES:
            yield split, texts[split], sizes[split]
            texts[split], sizes[split] = [], 0
    for split in SPLITS:
        if texts[split]:
            yield split, texts[split], sizes[split]
