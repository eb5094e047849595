"""The generation benchmark: prompts, clocks, bars and page; and a small run of two sides on a tiny base."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from decoding_limits import measure_limits, step_cost
from generate import arguments, main
from generation_load import Heard, arrivals, load_figures
from generation_page import bars, decoded_per_second, prefilled_per_second, section, tokens_per_second
from generation_sides import OTHER_PEERS, OURS, SIDES, VLLM, python_of
from peers.waves import BatchClock, GenerateJob, Results, Wave
from prompts import common_tokens, question_prompts, questions, shared_prompts, warm_up_prompts
from sides import Environments, SideFailure
from tiny_models import save_tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.models.size import model_size


def test_prompts_are_real_different_and_of_like_length():
    renderer = ChatRenderer(tiny_tokenizer("smollm2"))
    assert len(set(questions())) == 256
    prompts = question_prompts(renderer)
    assert len(set(prompts)) == 256
    assert not set(prompts) & set(warm_up_prompts(renderer)), "a warm-up must not fill the prefix cache"
    median = statistics.median(map(len, prompts))
    distances = [abs(len(prompt) - median) for prompt in prompts]
    assert distances == sorted(distances)
    shared = shared_prompts(renderer)
    assert len(shared) == 64 and common_tokens(shared) > 150


def test_common_tokens():
    assert common_tokens([(1, 2, 3), (1, 2, 4, 5)]) == 2
    assert common_tokens([(1, 2), (1, 2, 3)]) == 2
    assert common_tokens([(7,), (8,)]) == 0


def test_the_clock_knows_when_all_have_begun_and_that_nothing_is_missing():
    clock = BatchClock(2)
    clock.arrived(0)
    clock.arrived(0)
    clock.arrived(1, 3)
    clock.arrived(0)
    figures = clock.figures(6)
    assert (figures["tokens"], figures["began_tokens"]) == (6, 5)
    first, second = figures["first_token_seconds"]
    assert 0 < first < second == figures["began_seconds"] < figures["seconds"]
    with pytest.raises(RuntimeError, match="6 tokens arrived, and 7 were generated"):
        clock.figures(7)
    with pytest.raises(RuntimeError):
        BatchClock(1).figures(0)


def test_answers_of_another_length_are_refused_and_warm_ups_arent_kept(tmp_path: Path):
    wave = Wave("2", (((1, 2), (3,)), ((4, 5), (6, 7))), 3)
    results = Results(GenerateJob("m", (wave,), str(tmp_path / "result.json")))
    batch = {"seconds": 2.0, "tokens": 6, "first_token_seconds": [0.5, 1.0], "began_seconds": 1.0, "began_tokens": 2}
    results.add(wave, [batch, batch])
    results.add(Wave("", (((1,), (2,)),), 3), [batch])
    with pytest.raises(RuntimeError, match="6 tokens were generated, and 12 were asked for"):
        results.add(wave, [batch])
    results.write(("torch",), 1 << 30)
    waves = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["waves"]
    assert list(waves) == ["2"] and waves["2"]["prompt_tokens"] == 7
    assert tokens_per_second(waves["2"]) == 3 and decoded_per_second(waves["2"]) == 4
    assert prefilled_per_second(waves["2"]) == 3.5


def test_arrivals_are_random_the_same_each_time_and_as_many_a_second_as_asked():
    times = arrivals(4.0, 4000)
    assert times == arrivals(4.0, 4000) == sorted(times) and times != arrivals(4.0, 4000, seed=1)
    assert times[-1] == pytest.approx(1000, rel=0.05)


def test_load_figures_are_of_the_callers_clock():
    heard = [Heard(10.0, [10.5, 10.6, 10.8], 3), Heard(11.0, [11.1, 12.0], 2)]
    figures = load_figures(2.0, heard)
    assert figures["tokens_per_second"] == pytest.approx(2.5) and figures["requests"] == 2
    assert figures["first_token_seconds"]["median"] == pytest.approx(0.3)
    assert figures["between_tokens_seconds"]["median"] == pytest.approx(0.2)


def test_without_vllms_environment_it_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(SideFailure, match=r"wasn't run: .*make_vllm_environment"):
        python_of(VLLM, Environments(tmp_path))
    assert python_of(OURS, Environments(tmp_path)).exists()


def test_limits_count_all_weights_that_a_step_reads(tmp_path: Path):
    folder = save_tiny_model("smollm2", tmp_path / "base")
    size = model_size(folder)
    cost = step_cost(size)
    assert (
        cost.weight_bytes == cost.operations_per_token == 2 * (size.linear_parameters + size.vocabulary * size.hidden)
    )
    limits = measure_limits(folder, (1, 4), 0.01)
    assert limits["bandwidth"] > 0 and limits["operations_per_second"] > 0
    assert all(seconds > 0 for form in ("packed", "plain") for seconds in limits["step_seconds"][form].values())


@pytest.mark.slow
def test_two_sides_answer_the_same_prompts_and_the_page_comes_from_what_they_wrote(tmp_path: Path):
    base = save_tiny_model("smollm2", tmp_path / "base")
    file = tmp_path / "results.json"
    options = ["--base", str(base), "--results", str(file), "--peers", str(tmp_path / "peers"), "--no-page"]
    options += ["--parts", "throughput,shared", "--sides", "tunesmith,transformers,vllm"]
    main([*options, "--rounds", "1", "--requests", "2", "--tokens", "3"])
    results = json.loads(file.read_text(encoding="utf-8"))
    for part, wave, tokens in (("throughput", "1", 9), ("shared", "cold", 2), ("shared", "warm", 6)):
        runs = results[part]["runs"]
        assert set(runs) == {"tunesmith", "transformers"}
        ours, theirs = (runs[side][0][wave] for side in runs)
        assert ours["tokens"] == theirs["tokens"] == tokens
        assert ours["prompt_tokens"] == theirs["prompt_tokens"] == results[part]["prompts"][wave]["tokens"]
    text = section(results)
    assert "vLLM wasn't run: its environment isn't there" in text and "### A shared system prompt" in text
    assert "### Under load" not in text


def _wave(seconds: float, tokens: int = 640, began: float = 1.0) -> dict:
    return {
        "prompt_tokens": 7200,
        "first_token_seconds": [began],
        "seconds": seconds,
        "tokens": tokens,
        "began_seconds": began,
        "began_tokens": tokens // 64,
    }


def _part(runs: dict, names: tuple[str, ...]) -> dict:
    return {
        "new_tokens": 64,
        "at_once": 32,
        "prompts": {name: {"count": 32, "tokens": 7200, "common_tokens": 200} for name in names},
        "runs": runs,
        "sides": {side: {"versions": {"torch": "2.13.0"}} for side in runs},
        "failures": {"vllm_default": "failed: x"},
    }


def _results() -> dict:
    throughput = {
        "tunesmith": [{"1": _wave(2), "32": _wave(2)}, {"1": _wave(2), "32": _wave(2)}],
        "transformers": [{"1": _wave(4), "32": _wave(8)}, {"1": _wave(4), "32": _wave(8)}],
        "vllm": [{"1": _wave(2.5), "32": _wave(5)}, {"1": _wave(2.5), "32": _wave(5)}],
        "transformers_eager": [{"1": _wave(5), "32": _wave(4.8)}],
    }
    shared = {
        "tunesmith": [{"cold": _wave(1.1, 32), "warm": _wave(3)}],
        "transformers": [{"cold": _wave(6.1, 32, 6), "warm": _wave(9, began=6)}],
    }
    times = {"median": 0.1, "p99": 0.5}
    rate = {"rate": 2.0, "requests": 24, "tokens_per_second": 120.0}
    rate |= {"first_token_seconds": times, "between_tokens_seconds": times}
    limits = {
        "bandwidth": 25e9,
        "weight_bytes": 270_000_000,
        "operations_per_token": 270_000_000,
        "operations_per_prompt_token": 212_000_000,
        "operations_per_second": 400e9,
        "cache_bytes_per_token": 46_080,
        "step_seconds": {"packed": {"1": 0.012}, "plain": {"1": 0.02}},
    }
    return {
        "throughput": _part(throughput, ("1", "32")),
        "shared": _part(shared, ("cold", "warm")),
        "load": {"runs": {"tunesmith": [rate], "vllm": [rate]}, "failures": {}, "new_tokens": 64},
        "adapters": {
            "runs": [{"none": _wave(2), "one": _wave(2.2), "four": _wave(2.53)}],
            "at_once": 32,
            "rank": 16,
            "adapters": 4,
        },
        "limits": {"sizes": [1], "limits": [limits], "waves": {"1": _wave(17.0, 640, 1.0)}, "new_tokens": 64},
        "machine": "| machine | |\n|---|---|",
    }


def test_bars_compare_with_the_fastest_settings_of_a_package():
    found = {bar.what: bar for bar in bars(_results())}
    assert {what: (bar.reached, bar.is_met) for what, bar in found.items()} == {
        "1 request: speed against vLLM": ("1.25 x", False),
        "1 request: speed against transformers": ("2.00 x", True),
        "32 requests at once: speed against vLLM": ("2.50 x", True),
        "32 requests at once: speed against transformers": ("2.40 x", False),
        "Shared prompt: prefill against transformers": ("6.00 x", True),
        "Four adapters against one: time": ("+15 %", True),
    }
    assert bars({"machine": ""}) == []


def test_the_page_holds_every_part_and_its_lines_fit():
    text = section(_results())
    for words in (
        "| 32 | 320 | 80 (4.0 x) | 128 (2.5 x) | 133 (2.4 x) |",
        "vLLM, one core kept free failed: x.",
        "all begin with the same 200",
        "| 2 | vLLM | 100 | 500 | 100 | 500 | 120 |",
        "| four adapters, mixed | 253 | +26 % |",
        "| 83 |",
    ):
        assert words in " ".join(text.split()) or words in text, words
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_arguments(capsys: pytest.CaptureFixture[str]):
    assert arguments(["--parts", "shared,limits"]).parts == ["shared", "limits"]
    assert arguments([]).sides == list(SIDES) and {side.name for side in OTHER_PEERS} < set(SIDES)
    with pytest.raises(SystemExit):
        arguments(["--sides", "llama.cpp"])
    assert "unknown sides: llama.cpp" in capsys.readouterr().err
