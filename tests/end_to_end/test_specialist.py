"""The whole path with the real SmolLM2 and real rows, by the commands that a user types."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from openai import OpenAI

from server_process import running_server
from tunesmith.demo.prompts import ROWS

pytestmark = pytest.mark.slow

ROWS_TO_LEARN_FROM = 420


def command(home, *arguments, timeout=560):
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TUNESMITH_HOME": str(home.root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.timeout(900)
def test_a_file_becomes_a_proven_served_specialist(home_with_base, tmp_path):
    home = home_with_base
    data = tmp_path / "bookings.jsonl"
    with ROWS.open(encoding="utf-8") as rows:
        data.write_text("".join(islice(rows, ROWS_TO_LEARN_FROM)), encoding="utf-8")

    tuned = command(
        home, "tune", data, "--name", "bookings", "--epochs", 2, "--batch-size", 16, "--json",
        "--set", "data.max_test_rows=40", "--set", "data.max_validation_rows=24",
        "--set", "optimisation.validate_every_steps=20", "--set", "evaluation.max_output_tokens=40",
    )  # fmt: skip
    result = json.loads(tuned.stdout)
    before, after = result["evaluation"]["base"], result["evaluation"]["tuned"]
    assert result["evaluation"]["measure"] == "exact match"
    assert after["score"] >= before["score"] + 0.25
    assert after["low"] > before["high"]
    assert result["verdict"] == "ship"

    # Served answers equal offline answers, token for token, whatever else the server is doing.
    questions = [json.loads(line)["messages"][:2] for line in data.read_text(encoding="utf-8").splitlines()[:12]]
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(json.dumps({"messages": messages}) for messages in questions), encoding="utf-8")
    command(home, "generate", result["model"], "--input", prompts, "--output", answers, "--json")
    offline = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]

    with running_server(tmp_path / "server", home.root) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert result["model"] in [model.id for model in client.models.list()]

        def ask(messages):
            return client.chat.completions.create(
                model=result["model"], messages=messages, temperature=0, logprobs=True, max_completion_tokens=512
            )

        with ThreadPoolExecutor(6) as pool:
            served = list(pool.map(ask, questions))
    for ours, theirs in zip(offline, served, strict=True):
        assert theirs.choices[0].message.content == ours["text"]
        assert theirs.choices[0].finish_reason == ours["finish_reason"]
        assert theirs.usage.completion_tokens == ours["completion_tokens"]
        assert theirs.usage.prompt_tokens == ours["prompt_tokens"]
        assert "".join(token.token for token in theirs.choices[0].logprobs.content) == ours["text"]
