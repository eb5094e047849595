"""Every kind of file is read with its places; every kind of damage is named with its line."""

import csv
import datetime as dt
import decimal
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.jsonl import MAX_LINE_BYTES
from tunesmith.data.problems import RowProblem
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import DataError

ROWS = [{"q": "Ünï 1", "a": "x"}, {"q": 'two\nlines, and "quotes"', "a": "y"}]


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def table(tmp_path, name="rows.parquet", rows=None):
    path = tmp_path / name
    pq.write_table(pa.Table.from_pylist(rows or ROWS), tmp_path / "plain")
    return write(path, (tmp_path / "plain").read_bytes())


def written_as(tmp_path, name):
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return table(tmp_path, name)
    if kind in ("csv", "tsv"):
        plain = tmp_path / "plain"
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["q", "a"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        return write(tmp_path / name, plain.read_bytes())
    text = json.dumps({"version": 1, "data": ROWS}) if kind == "json" else "\n".join(json.dumps(row) for row in ROWS)
    return write(tmp_path / name, text.encode())


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_reads_every_kind_of_file(tmp_path, kind, gz):
    found = list(read_rows(written_as(tmp_path, f"rows.{kind}{gz}")))
    assert [row.values for row in found] == ROWS
    first = 2 if kind in ("csv", "tsv") else 1
    assert [row.place.line for row in found] == [first, first + 1]
    assert found[0].place.unit == ("row" if kind in ("json", "parquet") else "line")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\n\n  \n"])
def test_marks_line_ends_and_blank_lines_change_nothing(tmp_path, mark, end, last):
    lines = [b'{"a": 1}', b"", b'{"a": 2}']
    found = list(read_rows(write(tmp_path / "r.jsonl", mark + end.join(lines) + last)))
    assert [(row.values, row.place.line) for row in found] == [({"a": 1}, 1), ({"a": 2}, 3)]
    cells = mark + end.join([b"", b"q,a", b"1,2", b"", b'"x', b'y",3']) + last
    found = list(read_rows(write(tmp_path / "r.csv", cells)))
    assert [row.place.line for row in found] == [3, 5]
    assert found[0].values == {"q": "1", "a": "2"}


def test_jsonl_named_json_is_read_and_so_is_one_object(tmp_path):
    found = list(read_rows(write(tmp_path / "r.json", b'{"a": [1]}\n{"a": [2]}\n')))
    assert [row.place.line for row in found] == [1, 2]
    assert [r.values for r in read_rows(write(tmp_path / "s.json", b'{"rows":\n[{"a": 1}]}'))] == [{"a": 1}]


def test_semicolons_are_noticed(tmp_path):
    assert next(read_rows(write(tmp_path / "r.csv", b"q;a\n1,5;2\n"))).values == {"q": "1,5", "a": "2"}


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b'{"a": "x', "invalid_json", "column 7"),
        (b'{"a": 1} {"a": 2}', "invalid_json", "column 10"),
        (b"[1, 2]", "not_an_object", "array"),
        (b'"text"', "not_an_object", "text"),
        (b'{"a": 1, "a": 2}', "duplicate_key", '"a"'),
        (b'{"x": {"b": 1, "b": 1}}', "duplicate_key", '"b"'),
        (b'{"m": [{"score": NaN}]}', "invalid_number", "m[0].score"),
        (b'{"a": -Infinity}', "invalid_number", "a"),
        (b'{"a": {"deep": 1e999}}', "invalid_number", "a.deep"),
        (b'{"a": ' + b"7" * 5000 + b"}", "invalid_number", "5,000"),
        (b'{"a": "caf\xe9"}', "invalid_encoding", "Byte 11"),
        (b'{"a": "\xed\xa0\x80"}', "invalid_encoding", "Byte 8"),
        (b'{"a": "\\ud800 "}', "invalid_encoding", "Byte 8"),
        (b'{"a": "\x00"}', "invalid_encoding", "NUL"),
        (b'{"a": ' + b"[" * 100_000, "too_deep", "128"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep", "128"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path, line, code, says):
    good = b'{"a": "ok"}'
    found = list(read_rows(write(tmp_path / "r.jsonl", b"\n".join([good, b"", line, good]))))
    assert [type(row) for row in found] == [Row, RowProblem, Row]
    problem = found[1]
    assert (problem.place.line, problem.code) == (3, code)
    assert says in problem.message
    assert problem.fix


def test_escaped_pairs_and_escaped_backslashes_are_fine():
    assert parse_json(rb'{"a": "\ud83d\ude00 \\ud800"}') == {"a": "😀 \\ud800"}


def test_brackets_inside_texts_are_not_nesting():
    assert parse_json(json.dumps({"a": "[" * 500 + '"{'}).encode())["a"].startswith("[[")


def test_a_line_that_is_too_long_is_skipped(tmp_path):
    long = b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}'
    found = list(read_rows(write(tmp_path / "r.jsonl", b'{"a": 1}\n' + long + b'\n{"a": 2}')))
    assert [getattr(row, "code", None) for row in found] == [None, "line_too_long", None]
    assert [row.place.line for row in found] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "code", "where"),
    [
        ("r.jsonl", b"", "too_few_examples", "r.jsonl"),
        ("r.jsonl", b"\n \r\n", "too_few_examples", "r.jsonl"),
        ("r.json", b"[]", "too_few_examples", "r.json"),
        ("r.csv", b"q,a\n", "too_few_examples", "r.csv"),
        ("r.jsonl", '{"a": 1}\n'.encode("utf-16"), "invalid_encoding", "line 1"),
        ("r.csv", b"q,a\n1,2\nx,\xff\n", "invalid_encoding", "line 3"),
        ("r.json", b'[\n{"a": 1},\n{"a": }]', "invalid_json", "line 3"),
        ("r.json", b'{"a": [], "b": []}', "unsupported_json", "r.json"),
        ("r.json", b"3", "unsupported_json", "r.json"),
        ("r.csv", b"q,q\n1,2\n", "broken_csv", "header"),
        ("r.parquet", b"PAR1 not really", "broken_parquet", "r.parquet"),
        ("r.jsonl.gz", b"not gzip", "broken_gzip", "r.jsonl.gz"),
        ("r.txt", b"hello", "unsupported_file", "r.txt"),
        ("rows", b"hello", "unsupported_file", "rows"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, name, content, code, where):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert caught.value.code == code
    assert where in caught.value.where
    assert caught.value.fix


def test_truncated_gzip_missing_file_and_folder(tmp_path):
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-12])
    expected = {"r.jsonl.gz": "broken_gzip", "no.jsonl": "file_not_found", "": "unsupported_file"}
    for name, code in expected.items():
        path = tmp_path / name
        with pytest.raises(DataError) as caught:
            list(read_rows(path))
        assert caught.value.code == code


def test_broken_csv_rows_have_their_line(tmp_path):
    found = list(read_rows(write(tmp_path / "r.csv", b'q,a\n1,2\n1,2,3\n"x"y,2\n1,2\n"open,1\n2,3\n')))
    assert [(row.place.line, getattr(row, "code", "ok")) for row in found] == [
        (2, "ok"), (3, "broken_csv"), (4, "broken_csv"), (5, "ok"), (6, "broken_csv"),
    ]  # fmt: skip


def test_parquet_values_become_plain(tmp_path):
    row = {"d": dt.date(2024, 1, 2), "n": float("nan"), "c": decimal.Decimal("1.50"), "l": [{"b": b"\x00"}]}
    found = next(read_rows(table(tmp_path, rows=[row])))
    assert found.values == {"d": "2024-01-02", "n": None, "c": "1.50", "l": [{"b": "AA=="}]}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES, st.booleans())
def test_strict_parser_agrees_with_json(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_fault(raw):
    try:
        parse_json(raw)
    except JsonFault as fault:
        assert fault.code and fault.fix
