"""Models come when they are asked for and go when others need their room; only what is on offer is found."""

from __future__ import annotations

import pytest

from serving_models import prompt, register_tuned
from tiny_models import save_tiny_model
from tunesmith.errors import ModelError, RequestError
from tunesmith.serve.answers import Answers
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.generation import SamplingSpec


@pytest.fixture
def pool(tiny_folder, home):
    folders = [str(tiny_folder(family)) for family in ("smollm2", "qwen3", "qwen2")]
    pool = ModelPool(Catalogue(home, folders), home, dtype="float32", max_loaded=2)
    yield pool
    pool.close()


def names(pool):
    return [model.name for model in pool.catalogue.models()]


def use(pool, name):
    lease = pool.lease(pool.catalogue.find(name))
    seat = lease.ready.result(timeout=60)
    with Answers(seat.worker, [seat.opened.request(prompt("Hello"), SamplingSpec(max_completion_tokens=3))]) as answers:
        completion = list(answers)[-1][1].completion
    lease.release()
    return completion.token_ids


def test_the_least_recently_used_model_makes_room(pool):
    a, b, c = names(pool)
    assert (a, b, c) == ("tiny-smollm2", "tiny-qwen3", "tiny-qwen2")
    first = use(pool, a)
    use(pool, b)
    use(pool, a)
    assert pool.loaded == [b, a]
    use(pool, c)
    assert pool.loaded == [a, c]
    assert use(pool, b) and pool.loaded == [c, b]
    assert use(pool, a) == first


def test_a_model_in_use_stays_and_others_wait_for_room(pool):
    a, b, c = (pool.catalogue.find(name) for name in names(pool))
    leases = [pool.lease(a), pool.lease(b), pool.lease(a)]
    workers = [lease.ready.result(timeout=60).worker for lease in leases]
    assert workers[0] is workers[2]
    waiting = pool.lease(c)
    leases[0].release()
    leases[0].release()
    assert pool.loaded == [b.name, a.name] and not waiting.ready.done()
    leases[1].release()
    assert waiting.ready.result(timeout=60).opened.name == c.source
    assert pool.loaded == [a.name, c.name]
    leases[2].release()
    waiting.release()


def test_more_than_may_wait_for_room_are_refused(tiny_folder, home):
    folders = [str(tiny_folder(family)) for family in ("smollm2", "qwen3")]
    pool = ModelPool(Catalogue(home, folders), home, dtype="float32", max_loaded=1, max_waiting=0)
    a, b = (pool.catalogue.find(name) for name in names(pool))
    try:
        lease = pool.lease(a)
        with pytest.raises(RequestError) as refused:
            pool.lease(b)
        assert refused.value.code == "overloaded"
        lease.ready.result(timeout=60)
        lease.release()
        assert use(pool, b.name)
    finally:
        pool.close()


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_a_model_that_cannot_be_loaded_is_told_to_all_who_wait_and_tried_again(part, tmp_path, home):
    folder = save_tiny_model("smollm2", tmp_path / "base")
    version = register_tuned(folder, home)
    pool = ModelPool(Catalogue(home), home)
    try:
        broken = version.folder / "adapter_model.safetensors" if part == "adapter" else folder / "model.safetensors"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:-1])
        leases = [pool.lease(pool.catalogue.find(version.name)) for _ in range(2)]
        for lease in leases:
            with pytest.raises(ModelError):
                lease.ready.result(timeout=60)
            lease.release()
        assert pool.adapters == [] and pool.loaded == (["base"] if part == "adapter" else [])
        broken.write_bytes(whole)
        assert use(pool, version.name)
    finally:
        pool.close()


def test_a_closed_pool_loads_nothing(pool):
    pool.close()
    with pytest.raises(RequestError):
        pool.lease(pool.catalogue.find("tiny-qwen2"))


def test_tuned_models_appear_as_they_are_registered(tiny_folder, home):
    catalogue = Catalogue(home)
    before = [model.name for model in catalogue.models()]
    old = register_tuned(tiny_folder("smollm2"), home, seed=0)
    new = register_tuned(tiny_folder("smollm2"), home, seed=1)
    assert [model.name for model in catalogue.models()] == [*before, new.name, old.name]
    assert catalogue.find(old.id).name == old.name
    assert catalogue.find("bookings").name == new.name


def test_nothing_is_found_that_is_not_on_offer(tiny_folder, home):
    tuned = register_tuned(tiny_folder("smollm2"), home, seed=0)
    other = register_tuned(tiny_folder("smollm2"), home, seed=1)
    for name in (str(tiny_folder("smollm2")), "/etc", "..", "org/model", "", "x" * 5000, "\0"):
        with pytest.raises(ModelError) as refused:
            Catalogue(home).find(name)
        assert refused.value.code == "model_not_found"
    some = Catalogue(home, [tuned.id])
    assert [model.name for model in some.models()] == [tuned.name]
    assert some.find(tuned.name) == some.find(tuned.id)
    for name in (other.name, "smollm2-135m"):
        with pytest.raises(ModelError) as refused:
            some.find(name)
        assert refused.value.code == "model_not_found"


def test_two_folders_of_one_name_are_refused(tiny_folder, tmp_path, home):
    twin = save_tiny_model("llama", tmp_path / tiny_folder("smollm2").name)
    with pytest.raises(ModelError) as refused:
        Catalogue(home, [str(tiny_folder("smollm2")), str(twin)])
    assert refused.value.code == "same_name"
