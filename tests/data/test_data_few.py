"""Corpora of few documents: each split gets one, and larger corpora are divided as ever."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import some_texts, write_jsonl

from cola_train.data import preparation
from cola_train.data.dataset import TokenDataset
from cola_train.data.inputs import InputFile
from cola_train.data.jobs import Reading, documents, with_both_splits
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.prepared import open_data
from cola_train.errors import UserError
from cola_train.files import read_json

MakeConfig = Callable[..., DataOptions]


def divide(files: list[InputFile], fraction: float) -> tuple[list[InputFile], Counter[str]]:
    reading = Reading("text", "text", fraction)
    files = with_both_splits(files, reading, keep_alive=lambda: None)
    return files, Counter(split for split, _ in documents(files, reading))


def of_texts(folder: Path, counts: list[int]) -> list[InputFile]:
    """Files of so many documents each."""
    files = []
    for i, count in enumerate(counts):
        path = write_jsonl(folder / f"{i}.jsonl", ["some words"] * count)
        files.append(InputFile(path.name, str(path), None, path.stat().st_size))
    return files


@pytest.mark.parametrize("fraction", [1e-9, 0.001, 0.05, 0.5, 0.95, 0.999999])
@pytest.mark.parametrize("counts", [[1] * 10, [2], [1, 1], [0, 0, 3, 0], [5, 1, 0, 2]])
def test_of_two_documents_or_more_each_split_has_one(
    tmp_path: Path, fraction: float, counts: list[int]
) -> None:
    files = of_texts(tmp_path, counts)
    reading = Reading("text", "text", fraction)
    plain = Counter(split for split, _ in documents(files, reading))
    divided, found = divide(files, fraction)
    if len(plain) == 2:
        assert divided == files
    else:
        assert min(found["train"], found["validation"]) == 1
        assert found.total() == plain.total() == sum(counts)
    again, _ = divide(divided, fraction)
    assert again == divided


def test_one_document_and_a_split_of_its_own_stay_as_they_are(tmp_path: Path) -> None:
    (file,) = of_texts(tmp_path, [1])
    assert divide([file], 0.05)[0] == [file]
    for split in ("train", "validation"):
        given = [InputFile("a", file.location, split, 1)] * 2  # type: ignore[arg-type]
        assert divide(given, 0.05)[0] == given


def test_a_large_corpus_is_not_read_for_it(tmp_path: Path) -> None:
    files = of_texts(tmp_path, [1000])
    opened = 0

    def count() -> None:
        nonlocal opened
        opened += 1

    assert with_both_splits(files, Reading("text", "text", 0.05), count) == files
    assert opened <= 21


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten small files, none of which falls to validation by itself; a shard for each two."""
    names = [f"{i}.txt" for i in range(100)]
    names = [name for name in names if InputFile(name, "", None, 0).first_due() < 0.94][:10]
    folder = tmp_path / "ten"
    folder.mkdir()
    for i, name in enumerate(names):
        (folder / name).write_text(" ".join(some_texts(3, i)))
    monkeypatch.setattr(preparation, "SMALL_FILE_BYTES", 600)
    return folder


def validation_texts(folder: Path) -> list[str]:
    data = TokenDataset.open(folder, "validation")
    tokenizer = preparation.Tokenizer.load(str(folder / "tokenizer.json"))
    return [tokenizer.decode(data.document(i).tolist()) for i in range(data.n_documents)]


def test_ten_small_files_validate_by_document(
    ten: Path, data_config: MakeConfig, tmp_path: Path
) -> None:
    """The file whose name comes closest; the same with processes, and after an interruption."""
    nearest = max(ten.iterdir(), key=lambda p: InputFile(p.name, "", None, 0).first_due())
    manifests = []
    for workers in (1, 2):
        config = data_config(
            files=[str(ten)], validation_fraction=0.05, workers=workers,
            cache_dir=str(tmp_path / f"cache-{workers}"),
        )  # fmt: skip
        data = open_data(config, progress=False)
        assert data.train.n_documents == 9
        assert validation_texts(data.train.folder) == [nearest.read_text()]
        manifests.append(read_json(data.train.folder / "manifest.json"))
    assert manifests[0] == manifests[1] and len(manifests[0]["splits"]["train"]["shards"]) > 2

    folder = data.train.folder
    (folder / "manifest.json").unlink()
    next(folder.glob("train-*.tokens.npy")).unlink()
    assert prepare(config, progress=False) == folder
    assert read_json(folder / "manifest.json") == manifests[0]


def test_what_a_refused_preparation_left_is_no_hindrance(
    ten: Path, data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions did that left validation empty."""
    config = data_config(files=[str(ten)], validation_fraction=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "with_both_splits", lambda files, *_: files)
        with pytest.raises(UserError, match="need one each"):
            prepare(config, progress=False)
    folder = prepare(config, progress=False)
    assert len(validation_texts(folder)) == 1
    records = [json.loads(path.read_text()) for path in folder.glob("job-*.json")]
    assert any("validation" in record for record in records)
