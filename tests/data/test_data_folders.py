"""Corpora as they lie: folders of files of many kinds, endings read as plain text on request."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import some_texts, write_jsonl
from helpers import make_config

from cola_train.data.inputs import InputFile
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare, problems
from cola_train.data.prepared import open_data
from cola_train.data.sources import READERS

MakeConfig = Callable[..., DataOptions]


def files_of(config: DataOptions) -> list[InputFile]:
    return READERS[type(config)].files(config)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four files of known kinds, others beside them, and hidden ones."""
    folder = tmp_path / "corpus [v1]"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("b.txt", "deep/a.txt", "deep/.hidden.txt", ".git/c.txt"):
        (folder / name).write_text("\n".join(some_texts(900, len(name))))
    write_jsonl(folder / "deep" / "er" / "z.jsonl", some_texts(40))
    write_jsonl(folder / "a.json.gz", some_texts(40, 1))
    return folder


NAMES = ["a.json.gz", "b.txt", "deep/a.txt", "deep/er/z.jsonl"]


def add_other_kinds(folder: Path) -> None:
    for name in ("README.md", "deep/notes.md", "deep/er/c.png", "Makefile"):
        (folder / name).write_text("# other words\n" * 9)
    with gzip.open(folder / "deep" / "old.md.gz", "wt") as file:
        file.write("old words")


def test_a_folder_is_all_that_it_holds(corpus: Path, data_config: MakeConfig) -> None:
    files = files_of(data_config(files=[str(corpus)]))
    assert [file.name for file in files] == NAMES
    assert files == files_of(data_config(files=[f"{corpus}/", f"{corpus}/b.txt"]))
    plain = corpus.rename(corpus.parent / "corpus")
    files = files_of(data_config(files=[str(plain)]))
    assert files == files_of(data_config(files=[f"{plain}/**"]))


def test_the_folder_one_stands_in(
    corpus: Path, data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    assert [file.name for file in files_of(data_config(files=["."]))] == NAMES


def test_other_kinds_in_a_folder_are_passed_over_and_counted_once(
    corpus: Path, data_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = data_config(files=[str(corpus)])
    without = prepare(config, progress=False)
    assert "passed over" not in capsys.readouterr().err
    add_other_kinds(corpus)
    assert prepare(config, progress=False) == without
    said = capsys.readouterr().err
    counts = "5 files of other kinds passed over (3 .md, 1 without an ending, 1 .png)"
    assert said.count(f"{corpus}: {counts}") == said.count("passed over") == 1
    assert "data.text_endings" in said


def test_endings_read_as_plain_text_on_request(
    corpus: Path, data_config: MakeConfig, tokenizer_json: Path
) -> None:
    add_other_kinds(corpus)
    config = data_config(
        files=[str(corpus)], text_endings=[".md", ".rst"], tokenizer=str(tokenizer_json)
    )
    names = [file.name for file in files_of(config)]
    assert names == sorted([*NAMES, "README.md", "deep/notes.md", "deep/old.md.gz"])
    data = open_data(config, progress=False)
    decoded = [data.tokenizer.decode(data.train.document(i).tolist()) for i in range(9)]
    assert "# other words\n" * 9 in decoded
    pattern = data_config(files=[f"{corpus.parent}/corp*/*.md"], text_endings=[".md"])
    assert [Path(file.location).name for file in files_of(pattern)] == ["README.md"]


@pytest.mark.parametrize("ending", ["md", "", ".", ".md.gz", ".json", ".parquet", "*.md", "a/.md"])
def test_what_is_no_ending_of_text(corpus: Path, data_config: MakeConfig, ending: str) -> None:
    (found,) = problems(data_config(files=[str(corpus)], text_endings=[ending]))
    assert f"data.text_endings: {ending!r}: must be an ending of plain text, as .md is" in found


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*/README.md", r"README\.md: unknown kind.*text_endings=\[\.md\] reads it as plain text"),
        ("*/d*/**", r"c\.png: unknown kind of file: .*narrow the pattern"),
        ("*/deep/old.md.gz", r"data\.text_endings=\[\.md\] reads it as plain text"),
        ("*/Makefile", "Makefile: unknown kind of file: .*narrow the pattern$"),
        ("*/de*", r"data\.files: no file matches .*name the folder, as .*/deep$"),
        ("pictures", r"/pictures holds no \.txt.* \(1 of other kinds.*text_endings"),
        ("empty", r"data\.files: .*/empty holds no .* \(0 of other kinds"),
    ],
)
def test_one_file_or_a_pattern_of_other_kinds_is_refused(
    corpus: Path, data_config: MakeConfig, pattern: str, said: str
) -> None:
    add_other_kinds(corpus)
    for name in ("pictures", "empty"):
        (corpus.parent / name).mkdir()
    (corpus.parent / "pictures" / "a.png").touch()
    (found,) = problems(data_config(files=[f"{corpus.parent}/{pattern}"]))
    assert re.search(said, found), found


def test_as_a_user_types_them(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare folder, one under the home folder, and endings with their dots."""
    monkeypatch.setenv("HOME", str(corpus.parent))
    corpus.rename(corpus.parent / "mine")
    add_other_kinds(corpus.parent / "mine")
    monkeypatch.chdir(corpus.parent)
    for files in ("[mine]", "['~/mine']"):
        config = make_config("data=text", f"data.files={files}", "data.text_endings=[.md,.rst]")
        assert len(files_of(config.data)) == len(NAMES) + 3
