"""Tuned versions share a base: in memory once, each answering as it would alone, each gone when others need room."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from serving_models import prompt, register_tuned
from tiny_models import LONG_ANSWER_TOKENS, LONG_CONTEXT_TOKENS, save_tiny_model
from tunesmith.errors import ModelError
from tunesmith.models.adapters.lora import load_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.models.versions import delete_version, list_versions
from tunesmith.record.home import Home
from tunesmith.serve.answering import EngineLimits, open_model
from tunesmith.serve.answers import Answers
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.generation import SamplingSpec

SHORT = SamplingSpec(max_completion_tokens=8)
ENDLESS = SamplingSpec(max_completion_tokens=LONG_ANSWER_TOKENS, ignore_eos=True)
TEXTS = ["Hello", "A table for two", "Book it for Friday", "What is the capital?"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A home with four versions of one base: two plain ones, one with DoRA, one with another template."""
    root = tmp_path_factory.mktemp("served")
    base = save_tiny_model("qwen2", root / "base", context_tokens=LONG_CONTEXT_TOKENS)
    home = Home(root / "home")
    more = [{}, {}, {"adapter": {"dora": True, "rank": 3}}, {"template": _shouting(base)}]
    return base, home, [register_tuned(base, home, seed=seed, **facts) for seed, facts in enumerate(more)]


def _shouting(base):
    """A template that isn't the base's own, though its turns end alike."""
    return (base / "chat_template.jinja").read_text().replace("<|im_start|>", "<|im_start|>LOUD ", 1)


@pytest.fixture
def pool_of(served):
    """Makes pools over everything in the home; they are closed in the end."""
    base, home, _ = served
    pools = []

    def make(*more, **settings):
        names = [str(base), *map(str, more), *(version.name for version in list_versions(home))]
        pools.append(ModelPool(Catalogue(home, names), home, dtype="float32", **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def lease(pool, name):
    taken = pool.lease(pool.catalogue.find(name))
    return taken, taken.ready.result(timeout=60)


def answer(seat, text="Hello", sampling=SHORT):
    with Answers(seat.worker, [seat.opened.request(prompt(text), sampling)]) as answers:
        return [delta for _, delta in answers][-1].completion.token_ids


def use(pool, name, text="Hello"):
    taken, seat = lease(pool, name)
    try:
        return answer(seat, text)
    finally:
        taken.release()


def folded(served, version, texts):
    """What transformers says greedily, with the adapter folded into the weights; and what the model says alone here."""
    base, home, _ = served
    opened = open_model(str(base) if version is None else version.name, home, dtype="float32")
    requests = [opened.request(prompt(text), SHORT) for text in texts]
    alone = [completion.token_ids for completion in opened.engine.generate(requests)]
    loaded = load_base(resolve_base(str(base), home), "float32")
    if version is not None:
        load_lora(loaded.model, version.folder).merge()
    ends = list(loaded.end_of_turn_ids)
    theirs = []
    for request in requests:
        ids = torch.tensor([request.prompt_ids])
        out = loaded.model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=0)
        theirs.append(tuple(out[0, ids.shape[1] :].tolist()))
    return opened, alone, theirs


def test_a_mixed_batch_says_what_each_says_alone_and_what_transformers_says(served, pool_of):
    versions = served[2]
    pool = pool_of()
    names = ["base", *(version.name for version in versions)]
    taken, seats = zip(*(lease(pool, name) for name in names), strict=True)
    assert len({id(seat.opened.loaded.model) for seat in seats}) == len({id(seat.worker) for seat in seats}) == 1
    assert pool.loaded == ["base"] and sorted(pool.adapters) == sorted(version.name for version in versions)
    asked = [(i, text) for text in TEXTS for i in range(len(seats))]
    requests = [seats[i].opened.request(prompt(text), SHORT) for i, text in asked]
    with Answers(seats[0].worker, requests) as answers:
        done = {index: delta.completion.token_ids for index, delta in answers if delta.completion is not None}
    together = {asked[index]: tokens for index, tokens in done.items()}
    assert {key: answer(seats[key[0]], key[1]) for key in asked} == together
    for i, version in enumerate([None, *versions]):
        opened, alone, theirs = folded(served, version, TEXTS)
        assert [together[i, text] for text in TEXTS] == alone == theirs
        assert opened.fingerprint == seats[i].opened.fingerprint
    assert len({seat.opened.fingerprint for seat in seats}) == 5
    assert len({together[i, "Hello"] for i in range(5)}) == 5
    for one in taken:
        one.release()


def test_the_least_recently_used_adapter_goes_and_comes_back(served, pool_of):
    a, b, c, _ = (version.name for version in served[2])
    pool = pool_of(max_adapters=2)
    first = use(pool, a)
    use(pool, b)
    use(pool, a)
    assert pool.adapters == [b, a]
    taken, seat = lease(pool, c)
    assert pool.adapters == [a, c] and seat.opened.engine.adapters == {a, c}
    taken.release()
    use(pool, b)
    assert pool.adapters == [c, b]
    assert use(pool, a) == first


def test_an_adapter_in_use_stays_until_its_answers_end(served, pool_of):
    a, b, *_ = (version.name for version in served[2])
    pool = pool_of(max_adapters=1)
    taken, seat = lease(pool, a)
    expected = answer(seat, sampling=SamplingSpec(max_completion_tokens=60, ignore_eos=True))
    with Answers(seat.worker, [seat.opened.request(prompt("Hello"), ENDLESS)]) as answers:
        pieces = iter(answers)
        next(pieces)
        waiting = pool.lease(pool.catalogue.find(b))
        assert use(pool, "base")  # which needs no adapter
        time.sleep(0.1)
        assert not waiting.ready.done() and seat.opened.engine.adapters == {a}
        assert answer(seat, sampling=SamplingSpec(max_completion_tokens=60, ignore_eos=True)) == expected
    taken.release()  # its caller has left in the middle of the answer
    other = waiting.ready.result(timeout=60)
    assert other.opened.engine.adapters == {b} and answer(other)
    waiting.release()


def test_many_first_requests_load_once(served, pool_of):
    pool = pool_of()
    names = [version.name for version in served[2]] * 8
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(threads.map(lambda name: lease(pool, name), names))
    assert len({id(seat.worker) for _, seat in found}) == 1
    assert len({id(seat.opened) for _, seat in found}) == 4
    for taken, _ in found:
        taken.release()


def test_a_version_may_be_deleted_while_it_answers(served, pool_of):
    base, home, _ = served
    version = register_tuned(base, home, label="short-lived", seed=9)
    pool = pool_of(max_adapters=1)
    model = pool.catalogue.find(version.name)
    taken, seat = lease(pool, version.name)
    expected = answer(seat)
    delete_version(version)
    assert answer(seat) == expected
    # Who comes later doesn't find it, though it is still in memory.
    for catalogue in (pool.catalogue, Catalogue(home)):
        with pytest.raises(ModelError) as refused:
            catalogue.find(version.name)
        assert refused.value.code == "model_not_found"
    taken.release()
    use(pool, served[2][0].name)
    late = pool.lease(model)
    with pytest.raises(ModelError):
        late.ready.result(timeout=60)
    late.release()


def test_a_broken_adapter_fails_its_own_requests_alone(served, pool_of):
    base, home, versions = served
    version = register_tuned(base, home, label="broken", seed=10)
    pool = pool_of()
    expected = use(pool, versions[0].name)
    file = version.folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        broken = [pool.lease(pool.catalogue.find(version.name)) for _ in range(2)]
        good, seat = lease(pool, versions[0].name)
        for one in broken:
            with pytest.raises(ModelError):
                one.ready.result(timeout=60)
            one.release()
        assert answer(seat) == expected and pool.loaded == ["base"] and version.name not in pool.adapters
        file.write_bytes(whole)
        assert use(pool, version.name)
        good.release()
    finally:
        delete_version(version)


def test_those_who_wait_on_a_base_that_is_broken_are_all_told(served, home, tmp_path):
    """More versions than there is room for adapters; afterwards, all is well again."""
    base = save_tiny_model("smollm2", tmp_path / "base")
    versions = [register_tuned(base, home, seed=seed) for seed in range(3)]
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    pool = ModelPool(Catalogue(home), home, dtype="float32", max_adapters=1)
    try:
        waiting = [pool.lease(pool.catalogue.find(version.name)) for version in versions]
        for one in waiting:
            with pytest.raises(ModelError):
                one.ready.result(timeout=60)
            one.release()
        weights.write_bytes(whole)
        assert len({use(pool, version.name) for version in versions}) == 3
    finally:
        pool.close()


def test_what_was_trained_whole_has_weights_of_its_own(served, pool_of):
    base, home, versions = served
    version = register_tuned(base, home, label="whole", seed=11, adapter={"modules_to_save": ("norm",)})
    try:
        pool = pool_of()
        use(pool, versions[0].name)
        _, alone, theirs = folded(served, version, ["Hello"])
        assert [use(pool, version.name)] == alone == theirs
        assert pool.loaded == ["base", version.name] and pool.adapters == [versions[0].name]
    finally:
        delete_version(version)


def test_a_base_that_is_always_in_use_lets_another_in(served, pool_of, tiny_folder):
    pool = pool_of(tiny_folder("smollm2"), max_loaded=1, patience_seconds=0.3)
    names = [version.name for version in served[2][:2]]
    ended, failed = threading.Event(), []

    def keep_busy(name):
        while not ended.is_set():
            try:
                use(pool, name, "A table for two")
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=keep_busy, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert use(pool, "tiny-smollm2")
            assert use(pool, "base")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failed


def test_a_fault_leaves_the_adapters_in_place(served, pool_of):
    pool = pool_of(limits=EngineLimits(max_batch=4))
    taken, seat = lease(pool, served[2][0].name)
    expected = answer(seat)
    seat.worker.send(seat.worker.opened.renew_engine).result(timeout=60)
    assert answer(seat) == expected
    taken.release()
