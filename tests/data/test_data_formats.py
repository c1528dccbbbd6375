"""One file of text of every kind: what is read, what is left as it is, and what is refused."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cola_train.data.formats import TEXT_DOCUMENT_CHARACTERS
from cola_train.data.inputs import InputFile
from cola_train.data.sources import read_documents
from cola_train.errors import UserError

MARK = b"\xef\xbb\xbf"


def zstd(content: bytes) -> bytes:
    compressed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return compressed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
COMPRESSIONS = [ending for ending in COMPRESS if ending]


def read(path: Path, text_field: str = "text") -> list[str]:
    file = InputFile(path.name, str(path), None, path.stat().st_size)
    return list(read_documents("text", file, text_field))


def refused(path: Path, text_field: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        read(path, text_field)
    assert str(path) in str(caught.value)
    return str(caught.value)


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".ndjson"])
def test_all_of_a_compressed_file_is_read(tmp_path: Path, kind: str, ending: str) -> None:
    """In two streams one after another, as `cat a.gz b.gz` makes them."""
    texts = [f"{i} naïve \u2028 words\x85 {'x' * 40}" for i in range(3000)]
    lines = [
        (text if kind == ".txt" else json.dumps({"text": text}, ensure_ascii=False)) + "\n"
        for text in texts
    ]
    path = tmp_path / f"a{kind}{ending}"
    halves = ["".join(lines[:1000]), "".join(lines[1000:])]
    path.write_bytes(b"".join(COMPRESS[ending](half.encode()) for half in halves))
    assert "\n".join(text.removesuffix("\n") for text in read(path)) == "\n".join(texts)
    assert kind != ".txt" or len(read(path)) == len("".join(halves)) // TEXT_DOCUMENT_CHARACTERS + 1


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_compressed_file_cut_short_is_named(tmp_path: Path, kind: str, ending: str) -> None:
    whole = COMPRESS[ending](b'{"text": "words"}\n' * 5000)
    path = tmp_path / f"a{kind}{ending}"
    for cut in (b"", whole[:3], whole[: len(whole) // 2], whole[:-1], whole + whole[:-1]):
        path.write_bytes(cut)
        assert "cannot be read" in refused(path) and "replace the file" in refused(path)


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_byte_order_mark_is_no_text_and_line_ends_stay(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    text = "one\r\ntwo\rthree\n\ufeff four\r\n" * 2000
    path.write_bytes(COMPRESS[ending](MARK + text.encode()))
    documents = read(path)
    assert "".join(documents) == text and len(documents) > 1
    assert all(document.endswith(("\n", "\r")) for document in documents)
    path.write_bytes(COMPRESS[ending](MARK))
    assert read(path) == []

    path = tmp_path / f"a.jsonl{ending}"
    lines = [json.dumps({"text": text}).encode() for text in ("a\r\n", "\ufeffb")]
    one = MARK + lines[0] + b"\r\n"
    blanks = b'{"text":\r"c"}\r \n'
    # The second mark is of a file that was put behind another.
    path.write_bytes(COMPRESS[ending](one + one + blanks + lines[1]))
    assert read(path) == ["a\r\n", "a\r\n", "c", "\ufeffb"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"text": "a"}, {"text": "b"}]', ["line 1 is not a JSON object", "jq -c '.[]'"]),
        (b'\n[\n  {\n    "text": "a"\n  }\n]\n', ["line 2 is not a JSON object", "jq -c '.[]'"]),
        (b'[{"text": "a"},\n{"text": "b"}]\n', ["line 1 is not a JSON object", "jq -c '.[]'"]),
        (b'{\n  "text": "a"\n}\n', ["line 1 is not a JSON object", "jq -c '.'"]),
        (b'{"text": "a"}\n"b"\n', ["line 2 is not a JSON object", "repair the line"]),
        ('{"text": "a"}'.encode("utf-16"), ["cannot be read", "utf-8"]),
    ],
)
def test_json_that_is_not_an_object_a_line(tmp_path: Path, content: bytes, said: list[str]) -> None:
    (tmp_path / "a.json").write_bytes(content)
    message = refused(tmp_path / "a.json")
    assert all(words in message for words in said) and "data.text_field" not in message


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
    ],
    ids=str,
)
def test_parquet_of_which_only_the_text_is_read(tmp_path: Path, kind: pyarrow.DataType) -> None:
    """Beside columns that `datasets`, say, has no type for; in several row groups."""
    texts = [None if i % 7 == 0 else f"naïve {i % 50}" for i in range(2500)]
    given = [text.encode() if text and kind == pyarrow.binary() else text for text in texts]
    array = (
        pyarrow.array(given, kind)
        if kind != pyarrow.dictionary(pyarrow.int8(), pyarrow.string())
        else pyarrow.array(given).dictionary_encode().cast(kind)
    )
    others = {
        "tags": pyarrow.array([[("k", i)] for i in range(2500)], pyarrow.map_("string", "int32")),
        "took": pyarrow.array([i for i in range(2500)], pyarrow.duration("ns")),
        "half": pyarrow.array([b"ab"] * 2500, pyarrow.binary(2)),
        "more": pyarrow.array([{"text": 1}] * 2500),
    }
    path = parquet(tmp_path / "a.parquet", {**others, "text": array}, row_group_size=600)
    assert read(path) == [text for text in texts if text is not None]
    assert "holds list, not text" in refused(path, "tags")


def test_parquet_s_other_columns_can_be_unreadable(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"id": [str(i) for i in range(99)], "text": ["a"] * 99})
    chunk = pyarrow.parquet.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    assert read(path) == ["a"] * 99
    assert "cannot be read" in refused(path, "id")


def test_parquet_with_features_that_nobody_knows(tmp_path: Path) -> None:
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Hologram"}}}}
    table = pyarrow.table({"text": ["a"]}).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a"]


def test_parquet_without_rows_or_without_text(tmp_path: Path) -> None:
    none = pyarrow.array([], pyarrow.string())
    assert read(parquet(tmp_path / "none.parquet", {"id": none, "text": none})) == []
    assert read(parquet(tmp_path / "null.parquet", {"text": pyarrow.nulls(3)})) == []
    said = refused(parquet(tmp_path / "body.parquet", {"body": none, "id": none}))
    assert "no field 'text' (fields there: body, id): set data.text_field" in said
    latin = parquet(tmp_path / "latin.parquet", {"text": pyarrow.array([b"caf\xe9"])})
    assert "cannot be read (UnicodeDecodeError" in refused(latin)


def test_a_file_on_the_hub_is_read_as_one_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "c4-train.00000-of-01024.json.gz"
    copy.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    address = f"hf://datasets/allenai/c4/en/{copy.name}"
    opened = []

    def open_(_: object, path: str, mode: str) -> Any:
        opened.append(path)
        return open(copy, mode)

    monkeypatch.setattr("huggingface_hub.HfFileSystem.open", open_)
    assert list(read_documents("c4", InputFile(copy.name, address, "train", 1), "text")) == [
        "a",
        "b",
    ]
    assert opened == [address]
