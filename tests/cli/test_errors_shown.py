"""A user's mistake: what, where and how to fix it, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from small_disk import small_disk  # noqa: F401  (a fixture)
from tunesmith.cli.main import run


def write_rows(path: Path, count: int = 40) -> Path:
    """Write `count` different rows."""
    rows = [
        {"messages": [{"role": "user", "content": f"Number {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def broken_lines(path: Path, line: int, text: bytes) -> Path:
    """Write rows of which one line is `text`."""
    lines = write_rows(path).read_bytes().splitlines(keepends=True)
    lines[line - 1] = text + b"\n"
    path.write_bytes(b"".join(lines))
    return path


def row(*messages: dict[str, object]) -> bytes:
    return json.dumps({"messages": messages}).encode()


BROKEN: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "empty file": (lambda p: (p.write_bytes(b""), p)[1], "too_few_examples", "rows.jsonl"),
    "wrong encoding": (
        lambda p: broken_lines(p, 3, '{"text": "Grüße"}'.encode("latin-1")),
        "invalid_encoding",
        "line 3",
    ),
    "broken JSON": (lambda p: broken_lines(p, 7, b'{"messages": ['), "invalid_json", "line 7"),
    "missing role": (
        lambda p: broken_lines(p, 5, row({"content": "Hello"}, {"role": "assistant", "content": "Hi"})),
        "missing_role",
        "line 5",
    ),
    "no assistant turn": (
        lambda p: broken_lines(p, 2, row({"role": "user", "content": "Hello"})),
        "no_assistant_turn",
        "line 2",
    ),
    "three rows only": (lambda p: write_rows(p, 3), "too_few_examples", "rows.jsonl"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_refused_before_anything_is_written(case: str, tmp_path: Path, home, tiny_folder, capsys):
    make, code, where = BROKEN[case]
    data = make(tmp_path / "rows.jsonl")
    assert run(["tune", str(data), "--base", str(tiny_folder("smollm2")), "--json"]) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["code"] == code
    assert where in error["where"]
    assert error["message"] and error["fix"]
    assert error["message"].split("\n")[0] in shown.err
    assert "Traceback" not in shown.err
    assert not list(home.runs.iterdir()) and not list(home.models.iterdir())


def test_a_row_longer_than_the_context_is_refused_when_asked(tmp_path: Path, home, tiny_folder, capsys):
    data = write_rows(tmp_path / "rows.jsonl")
    long = {"messages": [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": "Yes."}]}
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps(long) + "\n")
    base = str(tiny_folder("smollm2"))
    assert run(["tune", str(data), "--base", base, "--set", "data.too_long=error", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "line 41" in error["where"] and "token" in error["message"]
    assert not list(home.runs.iterdir())
    # By default it is dropped, counted and listed.
    assert run(["check", str(data), "--base", base, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped_by_code"] == {"too_long": 1} and report["dropped_rows"][0]["line"] == 41


def test_an_unknown_base_is_named_with_those_that_are_known(tmp_path: Path, home, capsys):
    data = write_rows(tmp_path / "rows.jsonl")
    assert run(["tune", str(data), "--base", "smolm2-135m"]) == 2
    shown = capsys.readouterr().err
    assert "smolm2-135m" in shown and "Did you mean smollm2-135m" in shown


def test_a_full_disk_ends_the_run_without_a_half_written_model(
    tmp_path: Path,
    small_disk: Path,  # noqa: F811
    tiny_folder,
    monkeypatch,
    capsys,
):
    home = small_disk / "home"
    home.mkdir()
    (small_disk / "ballast").write_bytes(b"x" * 900_000)
    monkeypatch.setenv("TUNESMITH_HOME", str(home))
    data = write_rows(tmp_path / "rows.jsonl")
    assert run(["tune", str(data), "--base", str(tiny_folder("smollm2")), "--epochs", "1", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "disk_full" and "space" in error["fix"]
    models = home / "models"
    assert not models.exists() or not list(models.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tune"], "missing_data", "nothing to learn from"),
        (["tune", "x.jsonl", "--set", "optimisation.epoch=2"], "unknown_setting", "optimisation.epochs"),
        (["tune", "x.jsonl", "--set", "optimisation.epochs"], "invalid_setting", "path=value"),
        (["tune", "x.jsonl", "--epochs", "-1"], "invalid_spec", "optimisation.epochs"),
        (["tune", "x.jsonl", "--map", "question"], "bad_mapping", "--map"),
        (["tune", "--resume", "r", "--rank", "4"], "resume_with_settings", "resumed"),
        (["tune", "--resume", "no-such-run"], "run_not_found", "no-such-run"),
        (["tune", "--epoks", "2"], "usage", "--epochs"),
        (["tune", "--spec", "no-such.yaml"], None, "no-such.yaml"),
        (["check", "x.jsonl", "--set", "adapter.rank=2"], "unknown_setting", "adapter"),
        (["generate", "m", "--input", "a"], "usage", "--output"),
        (["serve", "--host", "0.0.0.0", "--port", "0"], "key_needed", "tunesmith keys create"),
        (["models", "show", "nothing"], "model_not_found", "nothing"),
        (["nonsense"], "usage", "nonsense"),
    ],
)
def test_mistakes_on_the_command_line_are_told_apart(arguments, code, words, home, capsys, monkeypatch):
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    assert run([*arguments, "--json"]) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["code"] == code
    assert words in " ".join(str(value) for value in error.values())
    assert shown.err.startswith("error: ")


def test_a_spec_with_unknown_keys_lists_them_all(tmp_path: Path, home, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text("data: {path: x.jsonl, shuffle: true}\noptimiser: adam\nadapter: {rank: 0}\n")
    assert run(["tune", "--spec", str(spec)]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("spec.yaml", "data.shuffle", "optimiser", "adapter.rank"))


def test_without_json_standard_output_stays_empty(home, capsys):
    assert run(["tune", "--epochs", "2"]) == 2
    assert capsys.readouterr().out == ""


def test_a_fault_of_our_own_is_one_line_with_the_place_of_the_whole_story(tmp_path: Path, home, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    from tunesmith.cli.errors import show_fault

    assert show_fault(ZeroDivisionError("division by zero"), as_json=True) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "internal_fault"
    assert "Traceback" not in shown.err
    [file] = tmp_path.glob("tunesmith-fault-*.txt")
    assert str(file) in shown.err and "ZeroDivisionError" in file.read_text()


def test_debugging_shows_the_whole_story(home, monkeypatch, capsys):
    from tunesmith.cli.errors import show_fault

    monkeypatch.setenv("TUNESMITH_DEBUG", "1")
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        assert show_fault(error, as_json=False) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_process_ends_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "tune", "x.jsonl", "--rank", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: adapter.rank")


def test_a_terminal_gets_a_panel():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "tune", "x.jsonl", "--rank", "0"],
        stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 2
    assert "╭" in shown.decode() and "adapter.rank" in shown.decode()


def test_control_characters_of_a_file_dont_reach_the_terminal(tmp_path: Path, home, capsys):
    data = tmp_path / "rows.csv"
    data.write_text('"que\x1b[31mstion",answer\n' + "".join(f"{i},{i}\n" for i in range(20)))
    assert run(["check", str(data)]) == 2
    assert "\x1b" not in capsys.readouterr().err
