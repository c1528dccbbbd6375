"""Every mistake a user can make with data: a UserError that names the field or file, and a fix."""

import errno
import gzip
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from corpora import some_texts, t5_like, write_jsonl
from tokenizers import Tokenizer, models

from cola_train.data import jobs
from cola_train.data.dataset import TokenDataset
from cola_train.data.loader import BatchLoader, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare, problems
from cola_train.data.prepared import open_data
from cola_train.data.shards import fingerprint
from cola_train.errors import UserError

MakeConfig = Callable[..., DataOptions]


def text_file(name: str, content: bytes) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(content)
        return {"files": [str(folder / name)]}

    return write


def parquet_without_text(folder: Path) -> dict[str, Any]:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), folder / "a.parquet")
    return {"files": [str(folder / "a.parquet")]}


def good(folder: Path) -> dict[str, Any]:
    return {"files": [str(write_jsonl(folder / "good.jsonl", some_texts(30)))]}


def tokenizer_without_end(folder: Path) -> dict[str, Any]:
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    return good(folder) | {"tokenizer": str(folder)}


def tokenizer_of_105(folder: Path) -> dict[str, Any]:
    t5_like().save(str(folder / "tokenizer.json"))
    return good(folder) | {"tokenizer": str(folder / "tokenizer.json")}


def tokens_with(manifest: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "manifest.json").write_text(manifest)
        return {"source": "tokens", "path": str(folder)}

    return write


def overlapping(folder: Path) -> dict[str, Any]:
    return good(folder) | {"validation_files": [str(folder / "*.jsonl")]}


def unwritable(folder: Path) -> dict[str, Any]:
    (folder / "occupied").touch()
    return good(folder) | {"cache_dir": str(folder / "occupied" / "cache")}


SPLIT: dict[str, Any] = {
    "fingerprint": fingerprint("t", 0, []), "bytes_of_text": 1, "shards": [],
}  # fmt: skip
MANIFEST = {
    "format": 1, "tokenizer": {"sha256": "t"}, "vocab_size": 32000, "eos_id": 0,
    "splits": {"train": SPLIT, "validation": SPLIT},
}  # fmt: skip

GZ = gzip.compress(b'{"text": "a"}\n' * 1000)

# What is wrong, and what the message says of it: found before anything is read ...
CONFIGURATION: list[tuple[Callable[[Path], dict[str, Any]], list[str]]] = [
    (lambda d: {"files": []}, ["data.files: empty"]),
    (lambda d: {"files": [f"{d}/no*.txt"]}, ["data.files: no file matches", "no*.txt"]),
    (
        lambda d: good(d) | {"validation_files": [f"{d}/v.txt"]},
        ["data.validation_files: no file matches", "v.txt"],
    ),
    (overlapping, ["good.jsonl is a training file too"]),
    (text_file("a.docx", b"x"), ["a.docx: unknown kind of file", ".parquet"]),
    (lambda d: good(d) | {"validation_fraction": 0.0}, ["data.validation_fraction=0.0"]),
    (
        lambda d: {"source": "stdlib", "validation_fraction": 1.0},
        ["data.validation_fraction=1.0"],
    ),
    (lambda d: good(d) | {"tokenizer": f"{d}/t.json"}, ["data.tokenizer=", "no such file"]),
    (lambda d: good(d) | {"tokenizer": str(d)}, ["holds no tokenizer.json"]),
    (
        lambda d: good(d) | {"tokenizer": f"{d}/good.jsonl"},
        ["good.jsonl is not a tokenizer.json", "replace it"],
    ),
    (tokenizer_without_end, ["no end-of-document token", "</s>"]),
    (
        tokenizer_of_105,
        ["model.vocab_size=100 is smaller", "105 tokens", "set model.vocab_size=105"],
    ),
    (lambda d: good(d) | {"vocab_size": 99}, ["data.vocab_size=99", "at least 257"]),
    (lambda d: good(d) | {"vocab_size": 300}, ["model.vocab_size=100", "data.vocab_size"]),
    (
        lambda d: {"source": "c4", "path": str(d), "vocab_size": 100},
        ["no file c4-train.*.json.gz", "no file c4-validation.*.json.gz"],
    ),
    (lambda d: {"source": "tokens", "path": str(d)}, ["no manifest.json there"]),
    (tokens_with("{"), ["not a readable manifest", "data.path"]),
    (tokens_with('{"format": 99}'), ["format 99", "data.path"]),
    (
        tokens_with(json.dumps(MANIFEST)),
        ["model.vocab_size=100 is smaller", "32000 tokens"],
    ),
    (
        tokens_with('{"format": 1, "tokenizer": "t", "eos_id": 0.5, "splits": {"train": {}}}'),
        [
            "vocab_size is missing",
            'tokenizer is "t", not an object',
            "eos_id is 0.5, not a whole",
            "splits.validation is missing",
            "splits.train.shards is missing",
        ],
    ),
    (
        lambda d: {"files": [f"{d}/*.txt"], "tokenizer": f"{d}/t.json"},  # both at once
        ["data.files: no file matches", "data.tokenizer="],
    ),
]

# ... and while preparing.
CONTENT: list[tuple[Callable[[Path], dict[str, Any]], list[str]]] = [
    (
        text_file("a.jsonl", b'{"body": "a", "id": 1}\n'),
        ["a.jsonl", "no field 'text' in line 1", "body, id", "data.text_field"],
    ),
    (parquet_without_text, ["a.parquet", "no field 'text'", "body, id", "data.text_field"]),
    (text_file("a.jsonl", b'{"text": 3}\n'), ["a.jsonl", "holds int, not text"]),
    (text_file("a.json", b'{"text": "a"}\n{"te\n'), ["a.json: line 2 is not a JSON object"]),
    (text_file("a.json.gz", b"not gzip"), ["a.json.gz: cannot be read", "replace the file"]),
    (text_file("a.json.gz", GZ[:-20]), ["a.json.gz: cannot be read", "replace the file"]),
    (text_file("a.txt.gz", GZ[:-20]), ["a.txt.gz: cannot be read", "replace the file"]),
    (text_file("a.parquet", b"PAR1 no more"), ["a.parquet: cannot be read"]),
    (text_file("a.txt", b"caf\xe9"), ["a.txt: cannot be read", "utf-8"]),
    (text_file("a.jsonl", b""), ["hold no text"]),
    (
        text_file("a.jsonl", b'{"text": "a"}\n'),
        ["data.files: a single document in all", "give more text", "data.validation_files"],
    ),
    (
        lambda d: good(d) | {"validation_files": [str(text_file("v.txt", b"")(d)["files"][0])]},
        ["data.validation_files: the validation files hold no text", "v.txt, 1 in all"],
    ),
    (
        lambda d: {
            "files": text_file("a.json", b'{"text": null}\n{"text": ""}\n')(d)["files"],
            "validation_files": good(d)["files"],
        },
        ["data.files: the training files hold no text", "a.json, 1 in all"],
    ),
    (unwritable, ["data.cache_dir", "occupied"]),
]


@pytest.mark.parametrize(("make", "said"), CONFIGURATION)
def test_found_before_reading(
    tmp_path: Path, data_config: MakeConfig, make: Callable[..., Any], said: list[str]
) -> None:
    config = data_config(**make(tmp_path))
    found = "\n".join(problems(config, model_vocab_size=100))
    assert all(words in found for words in said), found
    with pytest.raises(UserError) as caught:
        prepare(config, model_vocab_size=100)
    assert str(caught.value) == found


@pytest.mark.parametrize(("make", "said"), CONTENT)
def test_found_while_preparing(
    tmp_path: Path, data_config: MakeConfig, make: Callable[..., Any], said: list[str]
) -> None:
    t5_like().save(str(tmp_path / "t5.json"))
    options = {"validation_fraction": 0.001, "tokenizer": str(tmp_path / "t5.json")}
    config = data_config(**options | make(tmp_path))
    assert problems(config, model_vocab_size=105) == []
    with pytest.raises(UserError) as caught:
        prepare(config, model_vocab_size=105, progress=False)
    assert all(words in str(caught.value) for words in said), str(caught.value)


def test_an_unreadable_file_in_a_process_of_many(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path, small_shards: None
) -> None:
    (tmp_path / "a.txt").write_text("some text " * 100)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9" * 100)
    (tmp_path / "held.jsonl").write_text('{"text": "out"}')
    config = data_config(
        files=[f"{tmp_path}/*.txt"],
        validation_files=[f"{tmp_path}/held.jsonl"],
        tokenizer=str(tokenizer_json),
        workers=2,
    )
    with pytest.raises(UserError, match=r"b\.txt: cannot be read"):
        prepare(config, progress=False)


class DiesWhileHandingOut(ProcessPoolExecutor):
    """Its workers are killed after the first job, and the next is handed out once that is known."""

    def submit(self, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        future = super().submit(*arguments)
        for worker in multiprocessing.active_children():
            worker.kill()
        future.exception()
        return future


class CannotStart(ProcessPoolExecutor):
    """Where the system gives no further process."""

    def submit(self, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


class CannotBeMade(ProcessPoolExecutor):
    """Where there is no shared memory for its semaphores."""

    def __init__(self, *_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize(
    ("pool", "reason"),
    [(CannotStart, "temporarily unavailable"), (CannotBeMade, "not implemented")],
)
def test_processes_that_cannot_be_started(
    tmp_path: Path,
    data_config: MakeConfig,
    tokenizer_json: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    pool: type,
    reason: str,
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("some text " * 100)
    config = data_config(files=[f"{tmp_path}/*.txt"], tokenizer=str(tokenizer_json), workers=3)
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", pool)
    with pytest.raises(UserError, match=rf"cannot start 3 processes.*{reason}.*data\.workers=1"):
        prepare(config, progress=False)


def test_a_process_that_dies_while_jobs_are_handed_out(
    tmp_path: Path,
    data_config: MakeConfig,
    tokenizer_json: Path,
    small_shards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("some text " * 100)
    config = data_config(files=[f"{tmp_path}/*.txt"], tokenizer=str(tokenizer_json), workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "ProcessPoolExecutor", DiesWhileHandingOut)
        with pytest.raises(UserError, match=r"a process that tokenises died.*data\.workers=1"):
            prepare(config, progress=False)
    prepare(config, progress=False)


def test_no_hub(tmp_path: Path, data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfFileSystem.open", refuse)
    with pytest.raises(UserError, match=r"data\.tokenizer=t5-base.*local path"):
        prepare(data_config(source="c4", tokenizer="t5-base"), progress=False)
    t5_like().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"c4-train\.00000-of-01024\.json\.gz.*data\.path=FOLDER"):
        prepare(data_config(source="c4", tokenizer=str(tmp_path)), progress=False)


@pytest.mark.parametrize("damage", ["cut short", "header", "missing"])
def test_an_unreadable_shard(tmp_path: Path, data_config: MakeConfig, damage: str) -> None:
    folder = prepare(data_config(**good(tmp_path)), progress=False)
    shard = next(folder.glob("train-*.tokens.npy"))
    content = shard.read_bytes()
    if damage == "cut short":
        shard.write_bytes(content[:-2])
    elif damage == "header":
        shard.write_bytes(bytes(64) + content[64:])
    else:
        shard.unlink()
    with pytest.raises(UserError) as caught:
        TokenDataset.open(folder, "train")
    assert f"{shard}: unreadable shard" in str(caught.value)
    assert "delete it and run cola-prepare again" in str(caught.value)


def test_a_corpus_too_short(tmp_path: Path, data_config: MakeConfig) -> None:
    data = open_data(data_config(**good(tmp_path)))
    options: dict[str, Any] = {
        "micro_batch_size": 1,
        "rank": 0,
        "world_size": 1,
        "packing": "packed",
        "with_documents": False,
    }
    n = (data.train.n_tokens - 1) // 128
    expected = f"makes {n} sequences of 128 tokens, one step takes {n + 1}: add text, or lower"
    with pytest.raises(UserError, match=f"corpus shorter than one batch.*{expected}"):
        BatchLoader(data.train, sequence_length=128, batch_size=n + 1, seed=0, **options)
    with pytest.raises(UserError, match=r"validation split has .* tokens, fewer than one sequence"):
        next(evaluation_batches(data.validation, sequence_length=10**6, max_tokens=None, **options))
