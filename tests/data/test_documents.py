"""Documents: text files, folders of them, rows with a text; told apart from rows that have answers."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.documents import holds_documents, read_documents
from tunesmith.data.examples import Place
from tunesmith.data.recognise import recognise
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.specs.data import SourceSpec


def source(path, **values):
    return SourceSpec(path=str(path), **values)


def test_a_folder_holds_its_text_files_at_any_depth(tmp_path):
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "a.md").write_text("# three", encoding="utf-8")
    (tmp_path / "deep" / "c.txt.gz").write_bytes(gzip.compress(b"vier"))
    (tmp_path / "deep" / ".hidden" / "d.txt").write_text("no", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    assert holds_documents(source(tmp_path))
    read = read_documents(source(tmp_path), source=2)
    assert [document.text for document in read.documents] == ["# three", "one\ntwo", "vier"]
    assert {document.source for document in read.documents} == {2}
    assert read.documents[2].place == Place(str(tmp_path / "deep" / "c.txt.gz"), 1)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_with_a_text_are_documents(tmp_path, suffix):
    rows = [{"text": f"document {number}", "url": "https://example.org"} for number in range(3)]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text("text,url\n" + "\n".join(f"{r['text']},{r['url']}" for r in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert holds_documents(source(path))
    read = read_documents(source(path))
    assert [document.text for document in read.documents] == [row["text"] for row in rows]
    assert read.recognition.unused_columns == ("url",)


def test_any_column_may_be_the_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one two three", "label": "x"}\n{"body": 5}\n{"label": "y"}', encoding="utf-8")
    file = source(path, mapping={"text": "body"})
    assert holds_documents(file)
    read = read_documents(file)
    assert [document.text for document in read.documents] == ["one two three"]
    assert [problem.code for problem in read.problems] == ["wrong_type", "missing_value"]


@pytest.mark.parametrize("beside", ["label", "answer", "frobs"])
def test_a_text_with_something_to_answer_is_no_document(beside):
    rows = [Row(Place("f", 1), {"text": "some words", beside: "more"})]
    with pytest.raises(DataError, match="form isn't known"):
        recognise(rows, file="f")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.txt", None, "file_not_found"),
        ("folder", None, "no_documents"),
        ("latin.txt", b"caf\xe9", "invalid_encoding"),
        ("rows.jsonl", b'{"prompt": "a", "completion": "b"}', "not_documents"),
    ],
)
def test_what_isnt_documents_is_refused(tmp_path, name, content, code):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_documents(source(path))
    assert caught.value.code == code
