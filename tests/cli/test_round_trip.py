"""From a file to answers through the commands alone, with a tiny model."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.main import run
from tunesmith.specs.results import GenerateFigures, TuneFigures


def write_csv(path: Path, rows: int = 40) -> Path:
    """Write questions with short JSON answers, in columns of other names."""
    lines = ["question,reply", *(f'"How much is {i} and 1?","{{""sum"": {i + 1}}}"' for i in range(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_folder):
    """A home with one tuned model: the home, the figures that `--json` ended with, what was shown meanwhile."""
    folder = tmp_path_factory.mktemp("round-trip")
    data = write_csv(folder / "sums.csv")
    arguments = ["tune", str(data), "--map", "input=question", "--map", "output=reply", "--system", "Add."]
    arguments += [
        "--base",
        str(tiny_folder("smollm2")),
        "--name",
        "sums",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--json",
    ]
    environment = {**os.environ, "TUNESMITH_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return folder / "home", json.loads(done.stdout), done.stderr


@pytest.fixture
def in_home(tuned, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tuned[0]))
    return tuned


def results(arguments: list[str], capsys) -> dict:
    """Run a command with `--json` and return its object."""
    assert run([*arguments, "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_tune_ends_with_one_object_of_the_promised_shape(tuned):
    home, figures, _ = tuned
    parsed = TuneFigures.parse(figures)
    assert parsed.data.rows == 40 == parsed.data.train + parsed.data.validation + parsed.data.test
    assert re.fullmatch(r"ft:[a-z0-9.-]+:local:sums:[0-9a-f]{8}", parsed.model)
    assert Path(parsed.run).is_relative_to(home) and (Path(parsed.run) / "report.html").is_file()


def test_tune_tells_its_story_in_plain_lines(tuned):
    _, figures, shown = tuned
    told = ["The data", "One row as the model sees it", "The plan", "Before", "Training", "After", "The verdict"]
    places = [shown.index(heading) for heading in told]
    assert places == sorted(places)
    assert "\x1b" not in shown and "\r" not in shown
    assert "`question` is the input" in shown  # what was recognised, and why
    assert '«{"' in shown  # the answer is marked as learnt
    assert figures["model"] in shown and "tunesmith chat" in shown and "report.html" in shown


def test_models_and_runs_are_listed_and_shown(in_home, capsys):
    _, figures, _ = in_home
    [model] = results(["models", "list"], capsys)["models"]
    assert model["model"] == figures["model"]
    assert results(["models", "show", "sums"], capsys)["id"] == model["id"]
    [found] = results(["runs", "list"], capsys)["runs"]
    assert (found["state"], found["model"]) == ("succeeded", figures["model"])
    assert results(["runs", "show", found["id"][:15]], capsys)["spec"]["adapter"]["rank"] == 16
    assert run(["models", "list"]) == 0 and run(["runs", "list"]) == 0
    shown = capsys.readouterr().out
    assert "just now" in shown or "min ago" in shown


def test_generate_answers_a_file_in_order_and_as_chat_does(in_home, tmp_path, capsys, monkeypatch):
    _, figures, _ = in_home
    source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    questions = [f"How much is {i} and 1?" for i in (3, 1, 2)]
    source.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in questions))
    sampling = ["--max-completion-tokens", "6"]
    answered = results(
        ["generate", "sums", "--input", str(source), "--output", str(output), "--system", "Add.", *sampling], capsys
    )
    parsed = GenerateFigures.parse(answered)
    answers = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert parsed.requests == 3 == len(answers)

    # `chat` begins with the system prompt that the model was trained with.
    said = f"{questions[0]}\n/reset\n{questions[1]}\n/quit\nnever asked\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    talk = results(["chat", "sums", *sampling], capsys)
    assert talk["model"] == figures["model"]
    assert [message["role"] for message in talk["messages"]] == ["system", "user", "assistant"]
    assert talk["messages"][-1]["content"] == answers[1]


def test_chat_through_a_pipe_remembers_what_was_said(in_home, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nAgain\n"))
    messages = results(["chat", "sums", "--max-completion-tokens", "3"], capsys)["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Hello", "Again"]
    assert messages[0] == {"role": "system", "content": "Add."}
    assert len(messages) == 5


def test_a_message_longer_than_the_context_doesnt_end_the_chat(in_home, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 3000 + "\nHello\n"))
    assert run(["chat", "sums", "--max-completion-tokens", "3", "--json"]) == 0
    shown = capsys.readouterr()
    assert "error:" in shown.err
    assert json.loads(shown.out)["messages"][1]["content"] == "Hello"


def test_plan_says_what_tune_would_do(in_home, tmp_path, tiny_folder, capsys):
    data = write_csv(tmp_path / "sums.csv")
    mapped = [str(data), "--map", "input=question", "--map", "output=reply", "--base", str(tiny_folder("smollm2"))]
    values = results(["plan", *mapped, "--epochs", "3", "--batch-size", "8"], capsys)
    assert values["steps"] == -(-values["rows"] * 3 // 8)
    assert results(["runs", "list"], capsys)["runs"][1:] == []  # planning starts no run


def test_check_writes_a_clean_copy(home, tmp_path, capsys):
    data, clean = write_csv(tmp_path / "sums.csv"), tmp_path / "clean.jsonl"
    with data.open("a") as file:
        file.write('"What is this?",\n"How much is 1 and 1?","{""sum"": 2}"\n')
    mapped = ["--map", "input=question", "--map", "output=reply"]
    assert run(["check", str(data), *mapped]) == 2
    capsys.readouterr()
    report = results(["check", str(data), *mapped, "--fix", str(clean)], capsys)
    assert report["written"] == 40 and report["dropped"] == 2
    again = results(["check", str(clean)], capsys)
    assert (again["format"], again["rows"], again["dropped"]) == ("chat", 40, 0)


def test_a_deleted_model_is_gone(in_home, tmp_path, monkeypatch, capsys):
    copied = tmp_path / "home"
    shutil.copytree(in_home[0], copied)
    monkeypatch.setenv("TUNESMITH_HOME", str(copied))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["models", "delete", "sums"]) == 130  # nobody said yes
    assert results(["models", "delete", "sums", "--yes"], capsys)["deleted"] == in_home[1]["model"]
    assert results(["models", "list"], capsys)["models"] == []


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path, tiny_folder):
    data = write_csv(tmp_path / "sums.csv")
    environment = {**os.environ, "TUNESMITH_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tunesmith", "tune"]
    mapped = ["--map", "input=question", "--map", "output=reply", "--base", str(tiny_folder("smollm2"))]
    settings = ["--epochs", "100", "--set", "optimisation.patience=0", "--set", "evaluation.compare_base=false"]
    process = subprocess.Popen(
        [*command, str(data), *mapped, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if re.match("Validation loss .* after step", line):
            break
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130
    resume = re.search(r"tunesmith tune --resume (\S+)", shown)
    assert resume is not None and "Traceback" not in shown
    done = subprocess.run(
        [*command, "--resume", resume[1], "--quiet", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["steps"] > 50
