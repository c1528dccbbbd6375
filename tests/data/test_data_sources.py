"""Which files a corpus has: each once, links and spellings aside; and the key of its shards."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import some_texts, write_jsonl

from cola_train.data import preparation
from cola_train.data.inputs import InputFile
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare, problems
from cola_train.data.prepared import open_data
from cola_train.data.sources import READERS

MakeConfig = Callable[..., DataOptions]


def files_of(config: DataOptions) -> list[InputFile]:
    return READERS[type(config)].files(config)


def names_of(config: DataOptions) -> list[str]:
    return [file.name for file in files_of(config)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six files in three folders."""
    folder = tmp_path / "corpus"
    for i, inner in enumerate(["", "deep", "deep/er"] * 2):
        (folder / inner).mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / inner / f"{i}.jsonl", some_texts(20, i))
    return folder


NAMES = ["0.jsonl", "3.jsonl", "deep/1.jsonl", "deep/4.jsonl", "deep/er/2.jsonl", "deep/er/5.jsonl"]


def test_a_file_is_read_once_however_it_is_named(
    corpus: Path, data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = f"{corpus}/**/*.jsonl"
    assert names_of(data_config(files=[pattern])) == NAMES
    (corpus.parent / "linked").symlink_to(corpus / "deep")
    monkeypatch.chdir(corpus.parent)
    spellings = ["corpus/*.jsonl", "corpus/deep/../0.jsonl", f"{corpus}/./deep/**", "linked/*",
                 "**/er/*.jsonl"]  # fmt: skip
    config = data_config(files=[pattern, *spellings])
    assert names_of(config) == NAMES
    assert names_of(data_config(files=[pattern, *spellings], max_files=4)) == NAMES[:4]
    plain = open_data(data_config(files=[pattern])).train.fingerprint
    assert open_data(config).train.fingerprint == plain


def test_links_are_followed_without_loops(corpus: Path, data_config: MakeConfig) -> None:
    """Two folders in each other, which a plain walk would go through in 2^40 ways; a hard link;
    a folder elsewhere, that is only reached by a link."""
    elsewhere = corpus.parent / "elsewhere"
    elsewhere.mkdir()
    write_jsonl(elsewhere / "9.jsonl", some_texts(20))
    (elsewhere / "back").symlink_to(corpus)
    (corpus / "a").symlink_to(".")
    (corpus / "b").symlink_to(corpus)
    (corpus / "deep" / "up").symlink_to("..")
    (corpus / "deep" / "out").symlink_to(elsewhere)
    os.link(corpus / "0.jsonl", corpus / "zero.jsonl")
    (corpus / "z.jsonl").symlink_to("3.jsonl")
    config = data_config(files=[f"{corpus}/**/*.jsonl"])
    assert names_of(config) == sorted([*NAMES, "deep/out/9.jsonl"])
    assert names_of(data_config(files=[f"{corpus}/**"])) == names_of(config)


def spelt_absolutely(file: Path) -> str:
    return str(file)


def through_a_link_to_it(file: Path) -> str:
    link = file.with_name("link.jsonl")
    link.symlink_to(file.name)
    return str(link)


def through_a_link_to_its_folder(file: Path) -> str:
    link = file.parent.parent / "linked"
    link.symlink_to(file.parent)
    return f"{link}/{file.name}"


def hard_linked(file: Path) -> str:
    link = file.parent.parent / "other.jsonl"
    os.link(file, link)
    return str(link)


@pytest.mark.parametrize(
    "spelling", [spelt_absolutely, through_a_link_to_it, through_a_link_to_its_folder, hard_linked]
)
def test_a_file_that_is_in_training_cannot_validate(
    corpus: Path,
    data_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    spelling: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(corpus.parent)
    validation = spelling(corpus / "deep" / "4.jsonl")
    config = data_config(files=["corpus/**/[0-9].jsonl"], validation_files=[validation])
    (found,) = problems(config)
    assert found.startswith(f"data.validation_files: {validation} is a training file too")
    assert "corpus/deep/4.jsonl; 1 such files): keep the two apart" in found


def test_c4_s_files_too(tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path) -> None:
    train = [tmp_path / f"c4-train.0000{i}-of-01024.json.gz" for i in range(2)]
    validation = tmp_path / "c4-validation.00000-of-00008.json.gz"
    write_jsonl(train[0], some_texts(20))
    train[1].symlink_to(train[0].name)
    write_jsonl(validation, some_texts(5))
    config = data_config(source="c4", path=str(tmp_path), tokenizer=str(tokenizer_json))
    assert names_of(config) == [train[0].name, validation.name]
    validation.unlink()
    validation.symlink_to(train[0].name)
    (found,) = problems(config)
    assert f"data.path={tmp_path}: {validation} is a training file too" in found


def test_a_link_to_nothing_is_named(corpus: Path, data_config: MakeConfig) -> None:
    (corpus / "gone.jsonl").symlink_to("nowhere.jsonl")
    (found,) = problems(data_config(files=[f"{corpus}/*.jsonl"]))
    assert f"{corpus}/gone.jsonl: cannot be read (FileNotFoundError" in found
    name = "c4-train.00000-of-01024.json.gz"
    (corpus / name).symlink_to("nowhere.json.gz")
    found = "\n".join(problems(data_config(source="c4", path=str(corpus))))
    assert f"{corpus}/{name}: cannot be read (FileNotFoundError" in found


@pytest.mark.parametrize(
    ("size", "at"), [(0, None), (1, 0), (3000, 1234), (50_000, 0), (50_000, 25_000), (50_000, -1)]
)
def test_a_corpus_of_equal_names_sizes_and_times_has_shards_of_its_own(
    tmp_path: Path,
    data_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    at: int | None,
) -> None:
    """Where the two differ in one byte: of a file read whole, or of one read in pieces."""
    monkeypatch.setattr(preparation, "KEY_BYTES", 1)
    keys = []
    for name in ("one", "two"):
        content = bytearray(b"words and " * (size // 10 + 1))[:size]
        if at is not None and name == "two":
            content[at] = ord("x")
        (tmp_path / name).mkdir()
        file = tmp_path / name / "a.txt"
        file.write_bytes(content)
        os.utime(file, (1.7e9, 1.7e9))
        config = data_config(files=[str(file)])
        keys.append(preparation._key(config, files_of(config)))
    assert (keys[0] != keys[1]) == (at is not None)


def test_two_corpora_that_a_look_at_the_folder_cannot_tell_apart(
    tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path
) -> None:
    said = []
    for name, words in (("one", "some words"), ("two", "sore wards")):
        (tmp_path / name).mkdir()
        file = write_jsonl(tmp_path / name / "a.jsonl", [words] * 50)
        os.utime(file, (1.7e9, 1.7e9))
        config = data_config(files=[str(file)], tokenizer=str(tokenizer_json))
        data = open_data(config)
        said.append(data.tokenizer.decode(data.train.document(0).tolist()))
        assert prepare(config) == data.train.folder  # found again
    assert said == ["some words", "sore wards"]
