"""Files of prompts: rows of every form, rows with settings of their own, what is refused, what goes on."""

from __future__ import annotations

import json

import pytest

from tunesmith.errors import DataError, RequestError
from tunesmith.record.observer import Observer
from tunesmith.serve.answering import EngineLimits, open_model
from tunesmith.serve.batch import answer_file
from tunesmith.serve.prompts import PromptFile
from tunesmith.specs.generation import SamplingSpec

SHORT = SamplingSpec(max_completion_tokens=6)


@pytest.fixture
def opened(tiny_folder, home):
    return open_model(str(tiny_folder("smollm2")), home, dtype="float32", limits=EngineLimits(max_batch=2))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def answered(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def body(number, custom_id, **settings):
    messages = [{"role": "user", "content": f"What is {number}?"}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "some-model", "messages": messages, **settings},
    }


def test_requests_in_the_batch_form_bring_their_settings_and_names(opened, tmp_path):
    rows = [body(1, "a"), body(2, "b", max_tokens=2), body(3, "c", temperature=1.0, seed=4, stop="\n"), {"prompt": "4"}]
    prompts = PromptFile(write(tmp_path / "requests.jsonl", rows))
    figures = answer_file(opened, prompts, tmp_path / "answers.jsonl", SHORT, Observer())
    lines = answered(tmp_path / "answers.jsonl")
    assert [line.get("custom_id") for line in lines] == ["a", "b", "c", None]
    own = [{}, {"max_completion_tokens": 2}, {"temperature": 1.0, "seed": 4, "stop": ("\n",)}, {}]
    for row, line, settings in zip(prompts, lines, own, strict=True):
        request = opened.request(row.conversation, SHORT.model_copy(update=settings))
        assert opened.engine.generate([request])[0].text == line["text"]
    assert lines[1]["completion_tokens"] <= 2
    assert figures.output_tokens == sum(line["completion_tokens"] for line in lines)


def test_wrong_rows_are_named_all_at_once(tmp_path):
    rows = [body(1, "a", temperature=9), body(2, "b", n=3), {"question": "?"}, {"prompt": "fine"}, body(3, 5)]
    with pytest.raises(DataError) as refused:
        PromptFile(write(tmp_path / "requests.jsonl", rows))
    said = [str(refused.value), *refused.value.problems]
    assert [word in line for word, line in zip(["line 1", "line 2", "line 3", "line 5"], said, strict=True)] == [
        True
    ] * 4
    assert "temperature" in said[0] and "body.n" in said[1]


def test_a_prompt_that_cannot_be_answered_is_told_before_any_answer(opened, tmp_path):
    for wrong in ({"prompt": "too long " * 1000}, body(1, "a", logit_bias={"1000000": 1})):
        prompts = PromptFile(write(tmp_path / "p.jsonl", [{"prompt": "fine"}, wrong]))
        with pytest.raises(RequestError) as refused:
            answer_file(opened, prompts, tmp_path / "a.jsonl", SHORT, Observer())
        assert refused.value.where.endswith("line 2")
        assert not (tmp_path / "a.jsonl").exists()


def test_going_on_in_the_middle_of_a_prompts_answers(opened, tmp_path):
    prompts = PromptFile(write(tmp_path / "p.jsonl", [{"prompt": f"What is {n}?"} for n in range(7)]), "Be brief.")
    sampling = SamplingSpec(max_completion_tokens=5, temperature=1.0, seed=1, n=3, logprobs=True, top_logprobs=2)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer_file(opened, prompts, whole, sampling, Observer())
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    facts = [json.loads(line) for line in lines]
    assert [(fact["index"], fact["choice"]) for fact in facts] == [(n, c) for n in range(7) for c in range(3)]
    assert all(len(token["top_logprobs"]) == 2 for fact in facts for token in fact["logprobs"])

    class Stop(Observer):
        def answers(self, report):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        answer_file(opened, prompts, cut, sampling, Stop())
    assert not opened.engine.has_work
    cut.write_text("".join(lines[:8]), encoding="utf-8")
    assert answer_file(opened, prompts, cut, sampling, Observer()).requests == 13
    for ours, theirs in zip(answered(cut), facts, strict=True):
        assert [token["logprob"] for token in ours.pop("logprobs")] == pytest.approx(
            [token["logprob"] for token in theirs.pop("logprobs")], abs=1e-4
        )
        assert ours == theirs


def test_an_answer_that_breaks_off_is_written_and_keeps_nobody_waiting(opened, tmp_path, monkeypatch):
    prompts = PromptFile(write(tmp_path / "p.jsonl", [{"prompt": f"What is {n}?"} for n in range(6)]))
    whole, target, calls = tmp_path / "whole.jsonl", tmp_path / "a.jsonl", []
    answer_file(opened, prompts, whole, SHORT, Observer())
    forward, original = opened.engine._forward, opened.engine._forward.logits

    def poisoned(hidden):
        logits = original(hidden)
        calls.append(logits)
        if len(calls) == 3:
            logits[0] = float("nan")
        return logits

    monkeypatch.setattr(forward, "logits", poisoned)
    assert answer_file(opened, prompts, target, SHORT, Observer()).failed == 1
    broken = [line for line in answered(target) if "error" in line]
    assert [line["finish_reason"] for line in broken] == ["error"]
    assert broken[0]["error"]["message"]
    others = [line for line in answered(whole) if line["index"] != broken[0]["index"]]
    assert [line for line in answered(target) if "error" not in line] == others


def test_the_engine_is_fed_without_holding_the_file(opened, tmp_path):
    """One answer that takes long keeps the others neither from being computed nor without bound in memory."""
    rows = [body(0, "slow", max_completion_tokens=300)] + [body(n, f"{n}", max_completion_tokens=1) for n in range(120)]
    prompts = PromptFile(write(tmp_path / "p.jsonl", rows))
    target, written, added = tmp_path / "a.jsonl", [], []
    original = opened.engine.add
    opened.engine.add = lambda request: added.append(request) or original(request)

    class Watch(Observer):
        def answers(self, report):
            written.append(len(added))

    answer_file(opened, prompts, target, SHORT, Watch())
    assert [line["custom_id"] for line in answered(target)] == ["slow", *(f"{n}" for n in range(120))]
    assert all(ahead <= done + 6 + 2 for done, ahead in enumerate(written))
