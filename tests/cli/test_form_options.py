"""`tunesmith generate` holds answers to the form that its options say."""

from __future__ import annotations

import json
import re

import pytest

from tunesmith.cli.main import run


@pytest.fixture
def answers(tiny_folder, tmp_path, home, capsys):
    """A function that asks two questions with further options; the answers' texts, or what was said instead."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n', encoding="utf-8")

    def ask(*options: str) -> list[str] | str:
        target = tmp_path / "answers.jsonl"
        arguments = ["generate", str(tiny_folder("smollm2")), "--input", str(questions), "--output", str(target)]
        code = run([*arguments, "--temperature", "1", "--seed", "0", *options])
        if code:
            assert code == 2
            return re.sub(r"\s+", " ", capsys.readouterr().err)
        texts = [json.loads(line)["text"] for line in target.read_text(encoding="utf-8").splitlines()]
        target.unlink()
        return texts

    return ask


def test_each_form_has_an_option(answers, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "form.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}', encoding="utf-8")
    grammar.write_text('start: "x" /[0-9]{2}/', encoding="utf-8")
    assert all(set(json.loads(text)) <= {1, 2} for text in answers("--json-schema", str(schema)))
    assert all(re.fullmatch("[ab]{3}", text) for text in answers("--regex", "[ab]{3}"))
    assert set(answers("--choice", "yes", "--choice", "no, thanks")) <= {"yes", "no, thanks"}
    assert all(re.fullmatch("x[0-9]{2}", text) for text in answers("--grammar", str(grammar)))
    assert all(text.startswith("{") for text in answers("--json-object", "--max-completion-tokens", "9"))


def test_what_cant_be_is_said_without_blaming_a_row(answers, tmp_path):
    assert "Answers have one form" in answers("--regex", "a", "--json-object")
    assert "missing.json" in answers("--json-schema", str(tmp_path / "missing.json"))
    schema = tmp_path / "schema.json"
    schema.write_text('{"uniqueItems": true}', encoding="utf-8")
    told = answers("--json-schema", str(schema))
    assert "uniqueItems" in told
    assert "questions.jsonl" not in told
    schema.write_text('{"type": ', encoding="utf-8")
    assert "schema.json, line 1" in answers("--json-schema", str(schema))
