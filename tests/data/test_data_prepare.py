"""Preparing: shards against the texts and the `tokenizers` library, kills, many processes."""

import gzip
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpora import some_texts, t5_like, write_jsonl
from helpers import children_of, finish, run_python, start_python, wait_until

from cola_train.data.dataset import TokenDataset
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.prepared import open_data
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import UserError

MakeConfig = Callable[..., DataOptions]


def decoded(dataset: TokenDataset, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(dataset.document(i)[:-1].tolist()) for i in range(dataset.n_documents)]


def test_stdlib_gives_text_that_decodes_to_its_files(data_config: MakeConfig) -> None:
    data = open_data(data_config(source="stdlib", max_files=40))
    texts = decoded(data.train, data.tokenizer) + decoded(data.validation, data.tokenizer)
    assert Path(json.__file__).parent.parent.joinpath("abc.py").read_text() in texts
    size = data.train.bytes_of_text + data.validation.bytes_of_text
    assert size == sum(len(text.encode()) for text in texts)
    assert data.tokenizer.vocab_size == data.train.vocab_size == 300


def test_c4_of_its_own_shape(tmp_path: Path, data_config: MakeConfig) -> None:
    """Names, fields and compression as on the hub; a tokenizer of T5's shape."""
    folder = tmp_path / "en"
    folder.mkdir()
    odd = ["it quotes </s> and <extra_id_7> here", "", "the cat <pad>"]
    texts = [some_texts(30, 1) + odd, some_texts(30, 2)]
    extra = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/a"}
    for i, part in enumerate(texts):
        write_jsonl(folder / f"c4-train.{i:05d}-of-01024.json.gz", part, **extra)
    write_jsonl(folder / "c4-validation.00000-of-00008.json.gz", ["the cat sat"], **extra)
    backend = t5_like()
    backend.save(str(tmp_path / "tokenizer.json"))

    config = data_config(source="c4", path=str(folder), tokenizer=str(tmp_path))
    data = open_data(config, model_vocab_size=105)
    assert data.tokenizer.vocab_size == 105  # 4 + 7 words + 94 characters, no sentinels
    eos = data.train.eos_id
    assert eos == backend.token_to_id("</s>")
    expected = [t for part in texts for t in part if t and t not in odd]
    stream = data.train.window(0, data.train.n_tokens)
    assert stream.dtype == np.uint16 and stream.max() < 105
    assert (stream == eos).sum() == data.train.n_documents == len(expected) + 2
    plain = [[*backend.encode(text, add_special_tokens=False).ids, eos] for text in expected]
    kept = [data.train.document(i).tolist() for i in range(data.train.n_documents)]
    assert [ids for ids in kept if ids in plain] == plain
    assert decoded(data.validation, data.tokenizer) == ["the cat sat"]

    one_file = open_data(
        data_config(source="c4", path=str(folder), max_files=1, tokenizer=str(tmp_path))
    )
    assert one_file.train.n_documents == 32 and one_file.validation.n_documents == 1


def test_every_kind_of_text_file(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path
) -> None:
    texts = some_texts(8)
    (tmp_path / "a.txt").write_text(texts[0])
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write(texts[1])
    write_jsonl(tmp_path / "c.jsonl", [texts[2]], meta=1)
    with open(tmp_path / "c.jsonl", "a") as lines:  # free-form metadata, null text, blank line
        lines.write(json.dumps({"meta": {"k": []}, "text": texts[3]}) + '\n\n{"text": null}\n')
    write_jsonl(tmp_path / "d[1].jsonl", [texts[4]])
    write_jsonl(tmp_path / "f.json.gz", [texts[7]])
    table = pyarrow.table({"id": [1, 2, 3], "text": [texts[5], None, texts[6]]})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"held out"))
    data = open_data(
        data_config(
            files=[str(tmp_path / "[a-f]*")],
            validation_files=[str(tmp_path / "v*")],
            tokenizer=str(tokenizer_json),
        )
    )
    assert decoded(data.train, data.tokenizer) == texts
    assert decoded(data.validation, data.tokenizer) == ["held out"]


def test_the_split_is_by_share_and_does_not_depend_on_where_the_files_are(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path
) -> None:
    shares, fingerprints = [], []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "many.jsonl", some_texts(200))
        for i in range(200):
            (folder / f"{i}.txt").write_text(f"text {i}")
        (folder / "long.txt").write_text("one line of a very long file\n" * 40_000)
        for pattern in ("many.jsonl", "[0-9]*.txt", "long.txt"):
            data = open_data(
                data_config(files=[str(folder / pattern)], tokenizer=str(tokenizer_json))
            )
            total = data.train.n_documents + data.validation.n_documents
            shares.append(data.validation.n_documents / total)
            fingerprints.append((data.train.fingerprint, data.validation.fingerprint))
    assert shares[0] == 0.1 and 0.04 < shares[1] < 0.17 and 0.05 < shares[2] < 0.15
    assert fingerprints[:3] == fingerprints[3:]


def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path, data_config: MakeConfig, small_shards: None
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("\n".join(some_texts(2000, i)))
    contents = []
    for workers in (1, 2):
        cache = tmp_path / f"cache-{workers}"
        config = data_config(files=[str(tmp_path / "*.txt")], workers=workers, cache_dir=str(cache))
        folder = prepare(config, progress=False)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert sum(name.endswith(".tokens.npy") for name in contents[0]) == 6


SCRIPT = """
import sys
from cola_train.data.options import TextOptions
from cola_train.data import preparation
if __name__ == "__main__":
    preparation.SMALL_FILE_BYTES = 1
    print(preparation.prepare(TextOptions(**eval(sys.argv[1])), progress=False), flush=True)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_leaves_no_process_and_starts_again_where_it_was(
    tmp_path: Path,
    data_config: MakeConfig,
    tokenizer_json: Path,
    small_shards: None,
    kill: signal.Signals,
) -> None:
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("\n".join(some_texts(10_000, i)))
    config = data_config(files=[str(tmp_path / "*.txt")], tokenizer=str(tokenizer_json), workers=2)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start() -> subprocess.Popen[str]:
        return start_python(script, repr(vars(config)), errors=subprocess.PIPE)

    process = start()
    cache = Path(config.cache_dir)
    wait_until(lambda: any(cache.glob("*/job-*.json")), "a finished job", process)
    workers = children_of(process.pid)
    process.send_signal(kill)
    assert process.wait(timeout=120) != 0
    assert workers
    alive = lambda: any(Path(f"/proc/{pid}").exists() for pid in workers)  # noqa: E731
    wait_until(lambda: not alive(), "the end of its workers")
    (folder,) = cache.iterdir()
    assert not (folder / "manifest.json").exists()
    done = {record: record.stat().st_mtime_ns for record in folder.glob("job-*.json")}
    tokens = {path: path.stat().st_mtime_ns for path in folder.glob("*.tokens.npy")}
    assert 1 <= len(done) < 6

    for again in [start(), start()]:  # both at once: neither may spoil the other's work
        output, _ = finish(again)
        assert Path(output.strip()) == folder
    assert {record: record.stat().st_mtime_ns for record in done} == done
    finished = {f.with_name(f.name.replace("job-", "train-")).with_suffix("") for f in done}
    for path, modified in tokens.items():
        if Path(str(path).removesuffix(".tokens.npy")) in finished:
            assert path.stat().st_mtime_ns == modified
    assert not list(folder.glob("*.tmp-*"))
    fresh = prepare(
        data_config(**{**vars(config), "cache_dir": str(tmp_path / "fresh")}), progress=False
    )
    assert (folder / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()
    for split in ("train", "validation"):
        TokenDataset.open(folder, split).verify()


def test_a_deleted_shard_is_made_again(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", some_texts(50))
    config = data_config(files=[str(tmp_path / "a.jsonl")], tokenizer=str(tokenizer_json))
    before = open_data(config)
    shard = next(before.train.folder.glob("train-*.tokens.npy"))
    content = shard.read_bytes()

    damaged = bytearray(content)
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{shard.name}: unreadable shard .its checksum differs"):
        TokenDataset.open(before.train.folder, "train").verify()

    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: unreadable shard .No such file"):
        TokenDataset.open(before.train.folder, "train")
    assert open_data(config).train.fingerprint == before.train.fingerprint
    assert shard.read_bytes() == content


def test_the_manifest_records_what_was_done(tmp_path: Path, data_config: MakeConfig) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", some_texts(30))
    config = data_config(files=[str(file)])
    folder = prepare(config, progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokenizer"]["name"] == "train" and manifest["source"] == "text"
    data = open_data(data_config(source="tokens", path=str(folder)))
    for split, dataset in [("train", data.train), ("validation", data.validation)]:
        values = manifest["splits"][split]
        assert values["n_tokens"] == dataset.n_tokens
        assert values["fingerprint"] == dataset.fingerprint
    assert data.train.fingerprint == open_data(config).train.fingerprint


def test_large_vocabularies_take_four_bytes(tmp_path: Path, data_config: MakeConfig) -> None:
    backend = t5_like()
    for start in range(0, 70_000, 10_000):
        backend.add_tokens([f"w{i}" for i in range(start, start + 10_000)])
    backend.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "a.jsonl", ["w69999 w5"] * 20)
    data = open_data(
        data_config(files=[str(tmp_path / "a.jsonl")], tokenizer=str(tmp_path / "tokenizer.json"))
    )
    document = data.train.document(0)
    assert document.dtype == np.uint32 and document.max() > 65_535


def test_importing_the_package_is_cheap() -> None:
    check = "import sys, cola_train.data; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    run_python("-c", check)
