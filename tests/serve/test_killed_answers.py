"""A file of prompts whose answering is killed at any moment ends as if nothing had happened, byte for byte."""

from __future__ import annotations

import json
import random
import signal

import pytest

from killed_answering import answer
from killed_training import Processes

PROMPTS = [f"{'Tell me more. ' * (number % 5)}What is {number}?" for number in range(150)]


@pytest.fixture(scope="module")
def processes():
    return Processes()


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"max_completion_tokens": 200, "ignore_eos": True},
        {"max_completion_tokens": 200, "ignore_eos": True, "temperature": 1.0, "seed": 5, "n": 2},
    ],
    ids=["greedy", "sampled"],
)
def test_a_killed_file_ends_like_an_undisturbed_one(processes, home, tiny_folder, tmp_path, settings):
    prompts, whole, killed = (tmp_path / name for name in ("prompts.jsonl", "whole.jsonl", "killed.jsonl"))
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS), encoding="utf-8")
    base, total = str(tiny_folder("smollm2")), len(PROMPTS) * settings.get("n", 1)
    assert processes.run(answer, home.root, base, prompts, whole, settings) == 0
    assert lines_in(whole) == total

    chance = random.Random(7)
    # In the first half: what is left takes far longer than the kill needs to come.
    for target in sorted(chance.randrange(1, total // 2) for _ in range(3)):
        code = processes.run(
            answer, home.root, base, prompts, killed, settings,
            kill_when=lambda target=target: lines_in(killed) >= target,
        )  # fmt: skip
        assert code == -signal.SIGKILL
    assert lines_in(killed) < total
    with killed.open("ab") as file:  # a machine that went down leaves half a line
        file.write(b'{"index": 1')
    assert processes.run(answer, home.root, base, prompts, killed, settings) == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert not killed.with_name("killed.jsonl.job.json").exists()
