"""The prompts of the generation benchmark: real questions of like length, and real messages under one system prompt."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.prompts import as_conversation
from workloads import WORKLOADS

Prompt = tuple[int, ...]

_QUESTIONS = Path(__file__).parent / "data" / "gsm8k_questions_256.jsonl"


def questions() -> list[str]:
    """Return 256 different questions."""
    return [json.loads(line)["question"] for line in _QUESTIONS.read_text(encoding="utf-8").splitlines()]


def question_prompts(renderer: ChatRenderer) -> list[Prompt]:
    """Return the questions as prompts, those of the median's length first: peers that pad then pad little."""
    prompts = [renderer.for_generation(as_conversation(question)) for question in questions()]
    median = statistics.median(map(len, prompts))
    return sorted(prompts, key=lambda prompt: abs(len(prompt) - median))


def warm_up_prompts(renderer: ChatRenderer) -> list[Prompt]:
    """Return 64 other questions as prompts."""
    return _rendered(renderer, "maths")


def shared_prompts(renderer: ChatRenderer) -> list[Prompt]:
    """Return 64 short messages as prompts, all with the same system prompt of about 200 tokens."""
    return _rendered(renderer, "extraction")


def common_tokens(prompts: Sequence[Prompt]) -> int:
    """Return how many tokens all prompts begin with alike."""
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return next((count for count, is_alike in enumerate(alike) if not is_alike), min(map(len, prompts)))


def _rendered(renderer: ChatRenderer, workload: str) -> list[Prompt]:
    rows = next(one for one in WORKLOADS if one.name == workload).rows()
    return [renderer.for_generation(as_conversation(row["messages"][:-1])) for row in rows]
