"""The GPU benchmark of generation with a tiny shape on the CPU: both sides answer, and the page says how fast."""

from __future__ import annotations

import pytest
import torch

from decoding_limits import read_bandwidth
from gpu.generate import arguments, bandwidth_share, main, section
from gpu.generation_work import SHAPES, SIDES, make_prompts, measure_side, plain_tokenizer
from tunesmith.chat.renderer import ChatRenderer

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


@pytest.mark.parametrize("side", SIDES)
def test_a_side_answers_with_as_many_tokens_as_asked(side: str):
    figures = measure_side(side, TINY, CPU)
    assert {count: run["tokens"] for count, run in figures.items()} == {
        str(count): count * TINY.new_tokens for count in TINY.at_once
    }


def test_prompts_differ_and_every_token_has_a_text():
    prompts = make_prompts(TINY, 50, 0)
    assert len(set(prompts)) == 50 and prompts == make_prompts(TINY, 50, 0) != make_prompts(TINY, 50, 1)
    renderer = ChatRenderer(plain_tokenizer(400))
    assert renderer.token_bytes(399) == b"word143" and b"".join(map(renderer.token_bytes, range(256)))


def test_the_page_says_the_share_of_the_memorys_speed():
    run = {"seconds": 3.0, "tokens": 256, "began_seconds": 1.0, "began_tokens": 2}
    results = {
        "shape": "Shape",
        "device": "card",
        "prompt_tokens": 256,
        "new_tokens": 128,
        "bandwidth": 4e12,
        "weight_bytes": 16_000_000_000,
        "operations_per_token": 16_000_000_000,
        "cache_bytes_per_token": 131_072,
        "runs": {"tunesmith": [{"2": run}], "transformers": [{"2": {**run, "seconds": 6.0}}]},
        "failures": {},
        "machine": "| machine | |",
    }
    assert bandwidth_share(results, 2, 127.0) == pytest.approx(0.26, abs=0.01)
    text = section(results)
    assert "| 2 | transformers, SDPA | 43 | 2.00 x | 51 | 10 % |" in text and "reads 4,000 GB/s" in text


def test_the_memorys_speed_is_measured_on_any_device():
    assert read_bandwidth(0.01, 1 << 20, CPU) > 0


def test_without_a_gpu_it_says_what_it_needs():
    assert arguments(["--shape", "tiny"]).shape == "tiny"
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
            main([])
