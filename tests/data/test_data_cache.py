"""`cola-prepare list` and `clean`: what they show, what they remove, and what they never touch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import some_texts, write_jsonl
from helpers import start_python, wait_until

from cola_train.commands import caches
from cola_train.commands.prepare import main
from cola_train.data.cache import entries, remove
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare
from cola_train.data.prepared import open_data

MakeConfig = Callable[..., DataOptions]


@pytest.fixture
def cache(tmp_path: Path, data_config: MakeConfig, tokenizer_json: Path) -> Path:
    """Of three complete folders, one that is not, and what is no prepared folder."""
    cache = tmp_path / "cache"
    for i in range(4):
        write_jsonl(tmp_path / f"{i}.jsonl", some_texts(40, i))
        prepare(data_config(files=[f"{tmp_path}/{i}.jsonl"], tokenizer=str(tokenizer_json)))
    (folder_of(cache, 3) / "manifest.json").unlink()
    (cache / "mine").mkdir()
    (cache / "text-mine").mkdir()
    (cache / "text-0123456789ab").write_text("a file")
    return cache


def folder_of(cache: Path, i: int) -> Path:
    name = f"{i}.jsonl"
    manifests = (path for path in cache.glob("text-*/manifest.json") if name in path.read_text())
    return next(manifests).parent


def there(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert caches.main([str(word) for word in words]) == code
    said = capsys.readouterr()
    return (said.err if code else said.out).splitlines()


def test_list_says_what_each_folder_is(
    cache: Path, data_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_data(data_config(source="tokens", path=str(folder_of(cache, 1))))
    head, *lines, last = run(capsys, "list", f"data.cache_dir={cache}")
    assert head.split()[:3] == ["folder", "state", "size"] and len(lines) == 4
    assert last.startswith("4 folders, ") and last.endswith(f"in {cache}")
    by_name = {line.split()[0]: line for line in lines}
    used = by_name[data.train.folder.name]
    counts = (data.train.n_tokens, data.validation.n_tokens)
    assert "in use" in used and f"{counts[0]:,} + {counts[1]:,}" in used
    assert "36 + 4" in used and "files=[" in used and "1.jsonl" in used and "tokenizer.json" in used
    assert sum(" complete " in line for line in lines) == 2
    assert sum(" incomplete " in line for line in lines) == 1


def test_clean_removes_what_is_incomplete_and_only_with_yes(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = there(cache)
    shown = run(capsys, "clean", f"data.cache_dir={cache}")
    assert there(cache) == before and shown[-1] == "Nothing is removed yet: add --yes"
    (name,) = [line.split()[0] for line in shown if " incomplete " in line]
    assert run(capsys, "clean", "--yes", f"data.cache_dir={cache}")[-1] == f"{name} removed"
    assert before - there(cache) == {name}


def test_clean_removes_what_is_old_or_named(
    cache: Path, capsys: pytest.CaptureFixture[str], data_config: MakeConfig
) -> None:
    """The latest use counts, looking at the list is none."""
    old, opened, named = (folder_of(cache, i) for i in range(3))
    long_ago = time.time() - 40 * 86_400
    for folder in (old, opened):
        os.utime(folder / "manifest.json", (long_ago, long_ago))
    open_data(data_config(source="tokens", path=str(opened)))
    for _ in range(2):
        (line,) = [x for x in run(capsys, "list", f"data.cache_dir={cache}") if old.name in x]
        assert "40 days ago" in line
    before = there(cache)
    run(capsys, "clean", "--older-than", 30, "--yes", f"data.cache_dir={cache}")
    assert old.name in before - there(cache) and opened.name in there(cache)
    run(capsys, "clean", named, "--yes", f"data.cache_dir={cache}")
    assert there(cache) == {"mine", "text-mine", "text-0123456789ab", opened.name}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean", "text-mine"], "text-mine: not in the cache: see cola-prepare list"),
        (["clean", "{}/../other/{}"], "not in the cache: see cola-prepare list"),
        (["clean", "mine", "--older-than", "3"], "--older-than: has no effect on folders"),
        (["list", "mine"], "list takes data.cache_dir=PATH alone"),
        (["list", "data.cache_dir=/no/where"], "data.cache_dir=/no/where: no such folder"),
    ],
)
def test_mistakes_are_named(
    cache: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [word.format(cache, folder_of(cache, 0).name) for word in words]
    (line,) = run(capsys, words[0], f"data.cache_dir={cache}", *words[1:], code=2)
    assert said in line


HOLD = """
import sys, time
from pathlib import Path
from cola_train.data.locks import only_writer, reading
folder = Path(sys.argv[2])
if sys.argv[1] == "reads":
    held = reading(folder)
    print("there", flush=True)
    time.sleep(600)
with only_writer(folder, lambda: None):
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("what", "word"), [("reads", "in use"), ("writes", "being prepared")])
def test_a_folder_that_a_process_works_with_stays(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, word: str
) -> None:
    """Until the process dies, of whatever."""
    folder = folder_of(cache, 0)
    (tmp_path / "hold.py").write_text(HOLD)
    process = start_python(tmp_path / "hold.py", what, folder)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    arguments = ("clean", folder.name, "--yes", f"data.cache_dir={cache}")
    assert f"{folder.name} stays: {word}" in run(capsys, *arguments)
    assert remove(folder) == word  # should it begin after it was shown
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: remove(folder) == "", "the end of its lock")
    assert not folder.exists()


def test_one_who_waits_for_a_folder_that_is_removed_makes_it_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock it gets at last is of a file that is gone."""
    from cola_train.data import locks

    folder = folder_of(cache, 0)
    flock = locks.fcntl.flock

    def removed_meanwhile(lock: object, how: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        assert remove(folder) == ""
        flock(lock, how)  # type: ignore[call-overload]

    monkeypatch.setattr(locks.fcntl, "flock", removed_meanwhile)
    with locks.only_writer(folder, lambda: None) as locked:
        assert locked and (folder / ".lock").exists()
        assert remove(folder) == "being prepared"


def test_the_tokens_that_are_mapped_outlive_their_file(
    cache: Path, data_config: MakeConfig
) -> None:
    data = open_data(data_config(source="tokens", path=str(folder_of(cache, 0))))
    before = data.train.window(0, 20).tolist()
    for file in data.train.folder.iterdir():
        file.unlink()
    assert data.train.window(0, 20).tolist() == before


def test_the_command_takes_the_two_words(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is this process's
    monkeypatch.setattr("sys.argv", ["cola-prepare", "list", f"data.cache_dir={cache}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert len(entries(cache)) == 4 and "4 folders" in capsys.readouterr().out
