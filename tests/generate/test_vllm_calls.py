"""What vLLM is told, what it isn't told, and what it is refused; no vLLM is needed."""

from __future__ import annotations

import json
import sys

import pytest

from tunesmith.errors import ModelError
from tunesmith.generate.vllm.adapters import adapter_files
from tunesmith.generate.vllm.calls import choices_of, completion_body, continuation_scores
from tunesmith.generate.vllm.environment import VllmEnvironment, find_environment
from tunesmith.generate.vllm.server import ServerSettings, VllmServer
from tunesmith.specs.generation import SamplingSpec

#: What the generator does itself, whoever computes; `logprobs` says how many likeliest tokens come.
OWN = {"max_completion_tokens", "stop", "ignore_eos", "n", "top_logprobs", "output"}
CHANGED = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repetition_penalty": 1.2, "logit_bias": {7: -3.0}, "seed": 3, "logprobs": True,
}  # fmt: skip


def body(**settings):
    return completion_body("base", [1, 2, 3], SamplingSpec(**settings), limit_tokens=9, end_ids=[2, 0])


def test_every_setting_reaches_vllm():
    assert CHANGED.keys() | OWN == SamplingSpec.model_fields.keys()
    plain = body()
    for name, value in CHANGED.items():
        changed = body(**{name: value})
        assert {key for key in changed if changed.get(key) != plain.get(key)} == {name}, name
    assert body(logprobs=True, top_logprobs=4)["logprobs"] == 4
    assert body(logit_bias={7: -3.0})["logit_bias"] == {"7": -3.0}
    assert body(seed=-1)["seed"] == 2**63 - 1
    assert (plain["prompt"], plain["max_tokens"], plain["stop_token_ids"]) == ([1, 2, 3], 9, [0, 2])
    assert "stop" not in body(stop=("x",))


def test_ends_are_forbidden_where_they_are_to_be_ignored_but_a_form_may_end():
    assert body(ignore_eos=True)["min_tokens"] == 9
    assert "min_tokens" not in body(ignore_eos=True, output={"kind": "choice", "choices": ["a"]})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"kind": "json_object"}, {"json_object": True}),
        ({"kind": "json_schema", "json_schema": {"type": "null"}}, {"json": {"type": "null"}}),
        ({"kind": "regex", "pattern": "a+"}, {"regex": "a+"}),
        ({"kind": "grammar", "grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"kind": "choice", "choices": ["a", "b"]}, {"choice": ["a", "b"]}),
    ],
)
def test_forms(form, expected):
    assert body(output=form)["structured_outputs"] == expected


def test_pieces_hold_tokens_with_the_likeliest_in_order():
    piece = {
        "token_ids": [5, 9],
        "logprobs": {
            "token_logprobs": [-2.0, -0.1],
            "top_logprobs": [{"token_id:5": -2.0, "token_id:7": -0.5}, {"token_id:9": -0.1, "token_id:1": -3.0}],
        },
    }
    first, second = choices_of(piece, 1)
    assert (first.token_id, first.logprob, first.top) == (5, -2.0, ((7, -0.5),))
    assert (second.token_id, second.top) == (9, ((9, -0.1),))
    assert [choice.token_id for choice in choices_of({"token_ids": [4]}, 0)] == [4]
    assert choices_of({"token_ids": None, "logprobs": None}, 0) == []


def test_scores_are_those_of_the_continuation():
    likeliest = {"logprob": -0.5, "rank": 1}
    entries = [None, {"3": {"logprob": -1.0, "rank": 1}}, {"4": {"logprob": -2.5, "rank": 3}, "8": likeliest}]
    assert continuation_scores(entries, (4,)) == ((-2.5,), (False,), ())
    assert continuation_scores(entries, (3, 4)) == ((-1.0, -2.5), (True, False), ())
    assert continuation_scores(entries, ()) == ((), (), ())
    assert continuation_scores(entries, (3, 4), 1)[2] == (((3, -1.0),), ((8, -0.5),))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 8, "use_dora": True}, "DoRA"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "whole modules"),
        ({"r": 8, "target_modules": ["q_proj", "lm_head"]}, "output layer"),
        ({"r": 513}, "rank 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 1024}}, "rank 512"),
        ({}, "can't be read"),
    ],
)
def test_adapters_that_vllm_cannot_compute_are_refused(tmp_path, config, words):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        adapter_files(tmp_path)


def test_the_rank_is_the_largest_of_the_layers(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 24, "k_proj": 2}}))
    assert adapter_files(tmp_path).rank == 24


def test_without_an_environment_there_is_a_way_to_get_one(tmp_path):
    for variables in ({}, {"TUNESMITH_VLLM_PYTHON": str(tmp_path)}, {"TUNESMITH_VLLM_PYTHON": sys.executable}):
        with pytest.raises(ModelError) as refusal:
            find_environment(variables)
        assert refusal.value.code == "no_vllm"
        assert "make vllm" in refusal.value.fix


def test_the_server_gets_no_secrets_of_ours():
    mine = {"TUNESMITH_API_KEY": "secret", "PYTHONPATH": "/x", "PATH": "/bin", "OMP_NUM_THREADS": "3"}
    given = VllmEnvironment("/v/bin/python", "0.32.0", is_cpu=True).variables("key", mine)
    assert not {"TUNESMITH_API_KEY", "PYTHONPATH"} & given.keys()
    assert (given["PATH"], given["OMP_NUM_THREADS"], given["VLLM_API_KEY"]) == ("/v/bin:/bin", "3", "key")


def test_a_server_that_does_not_start_says_why(tmp_path):
    speaks = tmp_path / "python"
    speaks.write_text("#!/bin/sh\necho 'WARNING: nothing'\necho 'ValueError: no such architecture' >&2\nexit 3\n")
    speaks.chmod(0o755)
    settings = ServerSettings(tmp_path, "float32", 64, cache_bytes=None)
    server = VllmServer(settings, VllmEnvironment(str(speaks), "9", is_cpu=True))
    try:
        server.launch()
        server.wait_for_end()
        assert not server.is_alive
        assert "ValueError: no such architecture" in server.failure("It didn't start.").problems
        for _ in range(settings.max_restarts):
            server.note_restart()
        with pytest.raises(ModelError, match="isn't started again"):
            server.note_restart()
    finally:
        server.stop()
    assert not server.log.parent.exists()
