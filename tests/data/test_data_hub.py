"""data=hf against a server that speaks the hub's API, as far as its client asks for it here."""

import gzip
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from corpora import some_texts

from cola_train.commands.cli import run_app
from cola_train.commands.prepare import _prepare
from cola_train.data import hub
from cola_train.data.cache import entries
from cola_train.data.options import DataOptions
from cola_train.data.preparation import prepare, problems
from cola_train.data.prepared import PreparedData, open_data
from cola_train.data.sources import READERS
from cola_train.errors import UserError

MakeConfig = Callable[..., DataOptions]
Repository = dict[str, dict[str, bytes]]  # revision -> path -> content


def parquet(texts: list[str], field: str = "text") -> bytes:
    sink = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(texts))), field: texts})
    pyarrow.parquet.write_table(table, sink, row_group_size=50)
    return sink.getvalue()


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Hub:
    """Its repositories by name; asked: the paths that were asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.cards: dict[str, Any] = {}
        self.renamed: dict[str, str] = {}
        self.asked: list[str] = []

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        revisions = self.repositories.get(name, {})
        return revisions.get(revision) or {commit(f): f for f in revisions.values()}.get(revision)

    def answer(self, method: str, address: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers."""
        path = unquote(urlsplit(address).path)
        self.asked.append(path)
        api = path.startswith("/api/datasets/")
        words = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        if words[0] in self.renamed:
            return 307, b"", {"Location": address.replace(words[0], self.renamed[words[0]], 1)}
        name, what = "/".join(words[:2]), words[2] if words[2:] else "revision"
        rest = "/".join(words[3:]) or "main"
        if name not in self.repositories:
            return 404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"}
        revision = next(
            (r for r in (hub.CONVERTED, rest.split("/")[0]) if rest.startswith(r)), "main"
        )
        files, inner = self.files(name, revision), rest.removeprefix(revision).strip("/")
        if files is None:
            return 404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"}
        if what == "revision":
            card = {"configs": self.cards[name]} if name in self.cards else {}
            info = {"id": name, "sha": commit(files), "cardData": card, "siblings": [], "tags": []}
            return 200, info, {}
        entries = [
            {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for p, c in files.items()
        ]
        if api and what == "tree":
            return 200, [e for e in entries if str(e["path"]).startswith(inner)], {}
        if api and what == "paths-info":
            return 200, [e for e in entries if str(e["path"]) in unquote(body.decode())], {}
        return (200, files[inner], {}) if inner in files else (404, b"", {})


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    """One for all tests: the client's file system remembers the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content, headers = server.hub.answer(self.command, self.path, body)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            if status == 200 and (part := self.headers.get("Range")):
                first, last = part.removeprefix("bytes=").split("-")
                content, status = content[int(first) : int(last) + 1], 206
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_HEAD = do_GET  # noqa: N815, the server's names

        def log_message(self, *_: object) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def the_hub(server: Any, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """It stands in for huggingface.co in this process."""
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    forget()
    server.hub = Hub()
    return server.hub


def forget() -> None:
    """As a new process."""
    huggingface_hub.HfFileSystem.clear_instance_cache()
    hub._converted.cache_clear()
    hub._own.cache_clear()


TRAIN, HELD = some_texts(120, 1), some_texts(9, 2)
CONVERTED = {
    "wikitext-2/train/0000.parquet": parquet(TRAIN[:70]),
    "wikitext-2/train/0001.parquet": parquet(TRAIN[70:]),
    "wikitext-2/validation/0000.parquet": parquet(HELD),
    "wikitext-103/train/0000.parquet": parquet(some_texts(5, 3)),
    "wikitext-103/partial-test/0000.parquet": parquet(some_texts(5, 4)),
}


@pytest.fixture
def wikitext(the_hub: Hub) -> Hub:
    own = {"README.md": b"words", "a/train.jsonl": jsonl(TRAIN[:10]), "a/dev.jsonl": jsonl(HELD)}
    the_hub.repositories["Salesforce/wikitext"] = {"main": own, hub.CONVERTED: CONVERTED}
    the_hub.renamed["wikitext"] = "Salesforce/wikitext"
    return the_hub


@pytest.fixture
def hf(data_config: MakeConfig, tokenizer_json: Path) -> MakeConfig:
    def make(**changes: Any) -> DataOptions:
        options = {"name": "wikitext", "config": "wikitext-2", "validation_fraction": 0.05}
        return data_config(source="hf", tokenizer=str(tokenizer_json), **{**options, **changes})

    return make


def texts_of(data: PreparedData, split: str) -> list[str]:
    dataset = getattr(data, split)
    ids = (dataset.document(i).tolist() for i in range(dataset.n_documents))
    return [data.tokenizer.decode(each) for each in ids]


def test_a_dataset_by_name(
    wikitext: Hub, hf: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its converted Parquet, of which the text's column alone is read."""
    config = hf(validation_split="validation")
    data = open_data(config, progress=False)
    assert texts_of(data, "train") == TRAIN and texts_of(data, "validation") == HELD
    said = capsys.readouterr().err
    assert f"2 files of split train, configuration wikitext-2, commit {commit(CONVERTED)}" in said
    read = len(wikitext.asked)
    assert prepare(config, progress=False) == data.train.folder
    assert len(wikitext.asked) == read  # nor is the hub asked again


def test_without_a_split_of_its_own_a_fraction_validates(wikitext: Hub, hf: MakeConfig) -> None:
    data = open_data(hf(max_files=1), progress=False)
    assert sorted(texts_of(data, "train") + texts_of(data, "validation")) == sorted(TRAIN[:70])
    assert 2 <= data.validation.n_documents <= 5


def test_the_cache_is_of_the_files_content(wikitext: Hub, hf: MakeConfig) -> None:
    """A commit that leaves them as they are makes nothing anew; one that changes a text does."""
    own = wikitext.repositories["Salesforce/wikitext"]
    first = prepare(hf(), progress=False)
    own[hub.CONVERTED] = CONVERTED | {"README.md": b"another"}
    forget()
    assert prepare(hf(), progress=False) == first
    changed = [TRAIN[0].upper(), *TRAIN[1:70]]
    own[hub.CONVERTED] = CONVERTED | {"wikitext-2/train/0000.parquet": parquet(changed)}
    forget()
    assert prepare(hf(), progress=False) != first


CARD: list[dict[str, Any]] = [
    {"config_name": "large", "data_files": [
        {"split": "train", "path": ["big/a/**/*.json.gz", "big/x-?.json.gz"]},
        {"split": "dev", "path": "held/*"}]},
    {"config_name": "small", "data_dir": "small", "data_files": "*.parquet"},
    {"config_name": "worded", "data_dir": "worded"},
    {"config_name": "binary", "data_files": "*.bin"},
]  # fmt: skip
OWN = {
    "big/a/b/1.json.gz": gzip.compress(jsonl(TRAIN[:30])),
    "big/x-1.json.gz": gzip.compress(jsonl(TRAIN[30:40])),
    "big/x-10.json.gz": b"not of it",
    "held/1.txt": HELD[0].encode(),
    "small/1.parquet": parquet(TRAIN[:20]),
    "small/in/2.parquet": b"not of it",
    "worded/training/1.jsonl": jsonl(TRAIN[:7]),
    "worded/my-valid.jsonl": jsonl(HELD),
    "worded/notes.txt": b"not of it",
    "a.bin": b"",
}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"config": "large", "validation_split": "dev"},
         ["big/a/b/1.json.gz", "big/x-1.json.gz", "held/1.txt"]),
        ({"config": "small"}, ["small/1.parquet"]),
        ({"config": "worded", "validation_split": "validation"},
         ["worded/training/1.jsonl", "worded/my-valid.jsonl"]),
    ],
)  # fmt: skip
def test_the_repository_s_own_files(
    the_hub: Hub, hf: MakeConfig, options: dict[str, Any], names: list[str]
) -> None:
    """By its card; where nothing is converted, only a part is, or a revision is asked for."""
    the_hub.cards["me/set"] = CARD
    the_hub.repositories["me/set"] = {"main": {"big/1.json.gz": b""}, "v1": OWN}
    config = hf(name="me/set", revision="v1", **options)
    assert [file.name for file in READERS[type(config)].files(config)] == names
    assert open_data(config, progress=False).train.n_documents >= 7

    part = {f"{name}/partial-train/0000.parquet": b"" for name in ("large", "small", "worded")}
    for converted in ({hub.CONVERTED: part}, {}):
        the_hub.repositories["me/set"] = {"main": OWN, **converted}
        forget()
        config = hf(name="me/set", **options)
        assert [file.name for file in READERS[type(config)].files(config)] == names


def test_files_without_words_of_a_split_are_for_training(the_hub: Hub, hf: MakeConfig) -> None:
    the_hub.repositories["me/plain"] = {"main": {"x.parquet": parquet(TRAIN), "LICENSE.txt": b"x"}}
    config = hf(name="me/plain", config=None)
    assert [file.name for file in READERS[type(config)].files(config)] == ["x.parquet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "me/none"}, ["data.name=me/none: no such dataset", "login"]),
        ({"name": "a b"}, ["data.name=a b: must be a name on the hub"]),
        ({"config": None}, ["data.config: Salesforce/wikitext has", "wikitext-103, wikitext-2"]),
        ({"config": "wikitext-22"}, ["data.config", "did you mean `wikitext-2`"]),
        ({"split": "test"}, ["data.split=test", "no such split, but train, validation"]),
        ({"config": "wikitext-103", "validation_split": "test"},
         ["data.validation_split=test", "train, partial-test"]),
        ({"validation_split": "train"}, ["data.validation_split: ", "is a training file too"]),
        ({"revision": "v9"}, ["data.revision=v9: wikitext has no such branch"]),
        ({"validation_fraction": 0.0}, ["data.validation_fraction=0.0"]),
        ({"name": "me/set", "config": "binary", "revision": "main"}, ["a.bin: a kind of file"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_is_there(
    wikitext: Hub, hf: MakeConfig, options: dict[str, Any], said: list[str]
) -> None:
    wikitext.cards["me/set"] = CARD
    wikitext.repositories["me/set"] = {"main": OWN}
    found = "\n".join(problems(hf(**options)))
    assert all(words in found for words in said), found


def test_without_a_network_it_says_what_to_do(
    hf: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    forget()
    (found,) = problems(hf())
    assert "data.name=wikitext: the hub cannot be read (" in found
    assert "copy its files here: data=text data.files=[FOLDER]" in found


def test_as_a_user_types_it(
    wikitext: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "data=hf", "data.name=wikitext", "data.config=wikitext-2", "data.split=train",
        "data.validation_split=validation", "data.text_field=text", "model.vocab_size=300",
        "data.workers=1", f"data.cache_dir={tmp_path}",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run_app(_prepare, words)
    assert ended.value.code == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.name.startswith("hf-")
    assert [entry.state for entry in entries(tmp_path)] == ["complete"]


def test_a_file_that_breaks_off(wikitext: Hub, hf: MakeConfig) -> None:
    own = wikitext.repositories["Salesforce/wikitext"]
    cut = CONVERTED["wikitext-2/train/0001.parquet"][:-9]
    own[hub.CONVERTED] = CONVERTED | {"wikitext-2/train/0001.parquet": cut}
    with pytest.raises(UserError, match=r"train/0001\.parquet: cannot be read.*data=text"):
        prepare(hf(), progress=False)
