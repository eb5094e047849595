"""`tunesmith check` on several files and on documents: every file counted apart, texts by their length."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app


def check(*arguments):
    result = CliRunner().invoke(app, ["check", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 40), ("b", 20)):
        rows = [{"prompt": f"{name} {n * 7919}", "completion": f"{n}", "id": n} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "book.txt").write_text("Some words stand here, one behind the other.\n\n" * 200, encoding="utf-8")


def test_every_file_is_counted(files):
    shown = check("--set", "data=[a.jsonl, {path: b.jsonl, weight: 2.5}]")
    assert "read from 2 files" in shown
    (line,) = (line.split() for line in shown.splitlines() if line.strip().startswith("b.jsonl   "))
    assert line == ["b.jsonl", "2.5", "20", "16", "2", "2", "0"]
    assert "b.jsonl: Nothing is learnt from these columns: `id`." in shown
    report = json.loads(check("--set", "data=[a.jsonl, b.jsonl]", "--json").splitlines()[-1])
    assert [(source["path"], source["rows"]) for source in report["sources"]] == [("a.jsonl", 40), ("b.jsonl", 20)]


def test_documents_are_counted_in_characters(files):
    shown = check("book.txt")
    assert "Recognised as documents: it is a text file." in shown
    assert "characters; locked away until the end" in shown and "Ready to learn from: 1 document." in shown


def test_a_clean_copy_of_documents_is_whole(files, tmp_path):
    check("book.txt", "--fix", "clean.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row == {"text": (tmp_path / "book.txt").read_text(encoding="utf-8")}
