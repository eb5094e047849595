"""Python, the command line and the server say the same; Ctrl-C leaves a file that the same command finishes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
import time

import httpx
import openai
import pytest

import tunesmith as ts
from tunesmith.cli.main import run
from tunesmith.rest.app import create_app
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec

QUESTIONS = ["Hello", "A table for four", "What is the capital of France?"]
LIMIT = 12


@pytest.fixture
def base(tiny_folder, home):
    return str(tiny_folder("smollm2"))


def prompts_in(path, texts):
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    return path


def served(base, home):
    async def ask():
        pool = ModelPool(Catalogue(home, [base]), home)
        app = create_app(pool, ServeSpec())
        try:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="x", http_client=http)
                asked = [
                    client.chat.completions.create(
                        model="tiny-smollm2",
                        messages=[{"role": "user", "content": text}],
                        max_completion_tokens=LIMIT,
                        temperature=0,
                    )
                    for text in QUESTIONS
                ]
                return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
        finally:
            pool.close()

    return asyncio.run(ask())


def test_all_doors_say_the_same(base, home, tmp_path, monkeypatch, capsys):
    with ts.open_model(base, home=home) as model:
        expected = [answer.text for answer in model.generate(QUESTIONS, max_completion_tokens=LIMIT)]
        assert ["".join(model.stream(text, max_completion_tokens=LIMIT)) for text in QUESTIONS] == expected
    assert served(base, home) == expected

    output = tmp_path / "answers.jsonl"
    prompts = str(prompts_in(tmp_path / "prompts.jsonl", QUESTIONS))
    limit = ["--max-completion-tokens", str(LIMIT)]
    assert run(["generate", base, "--input", prompts, "--output", str(output), *limit]) == 0
    assert [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()] == expected
    assert "tokens/s" in capsys.readouterr().err

    for question, answer in zip(QUESTIONS, expected, strict=True):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
        assert run(["chat", base, "--json", *limit]) == 0
        assert json.loads(capsys.readouterr().out)["messages"][-1]["content"] == answer


def test_ctrl_c_leaves_a_file_that_the_same_command_finishes(base, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts_in(prompts, [f"What is {n}?" for n in range(4000)])
    command = ["generate", base, "--input", str(prompts), "--output", str(output), "--max-completion-tokens", "8"]

    def press():
        while not (output.exists() and output.stat().st_size):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert run([*command, "--json"]) == 130
    thread.join()
    shown = capsys.readouterr()
    assert "of 4,000 answers" in shown.err and "same command" in shown.err
    assert json.loads(shown.out)["error"]["code"] == "interrupted"
    before = output.read_bytes()
    assert 0 < before.count(b"\n") < 4000
    assert run([*command, "--json"]) == 0
    after = output.read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 4000
    assert json.loads(capsys.readouterr().out)["requests"] == 4000 - before.count(b"\n")
