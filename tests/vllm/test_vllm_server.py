"""A server that dies is started again; nothing is left when it isn't wanted any more; models are opened with it."""

from __future__ import annotations

import gc
import os
import signal
import time

import psutil
import pytest

from serving_models import prompt
from tunesmith.errors import ModelError
from tunesmith.generate.request import Request
from tunesmith.generate.vllm.decoder import VllmDecoder, VllmLimits
from tunesmith.models.load import describe_base
from tunesmith.specs.generation import SamplingSpec

LIMITS = VllmLimits(max_batch=4, cache_bytes=1 << 29)


@pytest.fixture(scope="module")
def decoder(source, renderer):
    decoder = VllmDecoder(describe_base(source, "float32"), renderer, LIMITS)
    try:
        yield decoder
    finally:
        decoder.close()


def processes_of(decoder: VllmDecoder) -> list[psutil.Process]:
    keeper = psutil.Process(decoder.server_pid)
    return [keeper, *keeper.children(recursive=True)]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 120
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


def test_a_killed_server_fails_what_it_answered_and_goes_on_with_what_waits(decoder, renderer):
    prompt_ids = renderer.for_generation(prompt("Tell me a very long story."))
    long = Request(prompt_ids, SamplingSpec(ignore_eos=True, max_completion_tokens=1500))
    short = Request(prompt_ids, SamplingSpec(max_completion_tokens=4))
    before = decoder.generate([short])[0]
    flying = decoder.add(long)
    while not decoder.step():
        pass
    old = processes_of(decoder)
    engine = next(process for process in old if "EngineCore" in " ".join(process.cmdline()))
    waiting = [decoder.add(long) for _ in range(2 * LIMITS.max_batch)]  # the last one isn't sent yet
    for request_id in waiting[:-1]:
        decoder.cancel(request_id)
    last = decoder.add(short)
    os.kill(engine.pid, signal.SIGKILL)
    completions = {}
    while decoder.has_work and last not in completions:
        for delta in decoder.step():
            if delta.completion is not None:
                completions[delta.request_id] = delta.completion
    for request_id in waiting:
        decoder.cancel(request_id)
    assert completions[flying].finish_reason == "error"
    assert completions[flying].error.code == "vllm_failed"
    after = completions[last]
    # What was sent in the same moment may have failed too; a new request is answered in any case.
    if after.finish_reason == "error":
        after = decoder.generate([short])[0]
    assert after.token_ids == before.token_ids
    wait_until_gone(old)


def test_nothing_is_left_of_a_closed_server(source, renderer):
    decoder = VllmDecoder(describe_base(source, "float32"), renderer, LIMITS)
    processes = processes_of(decoder)
    assert len(processes) > 3
    del decoder  # nobody holds it any more: the same as closing it
    gc.collect()
    wait_until_gone(processes)


def test_a_model_that_vllm_cannot_load_tells_the_end_of_its_log(source, renderer):
    with pytest.raises(ModelError) as refusal:
        VllmDecoder(describe_base(source, "float32"), renderer, VllmLimits(max_batch=4, cache_bytes=1 << 50))
    assert refusal.value.code == "vllm_failed"
    assert any("memory" in line.lower() for line in refusal.value.problems)
