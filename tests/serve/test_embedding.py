"""Who waits for embeddings gets a turn; who leaves costs nothing more; a fault is the fault of one."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tunesmith.errors import RequestError, TunesmithError
from tunesmith.serve.embedding import Embedder
from tunesmith.serve.turns import Turns
from tunesmith.serve.used import UsedTokens

PATIENCE_SECONDS = 30


class Encoder:
    """Computes a row at a time: its first token. The first pass of all waits for `go`; token 13 can't be computed."""

    dimensions = 1

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.computed = []

    def passes(self, rows):
        for place, row in enumerate(rows):
            self.begun.set()
            assert self.go.wait(PATIENCE_SECONDS)
            if row[0] == 13:
                raise RuntimeError("broken")
            self.computed.append(row[0])
            yield [place], np.array([[row[0]]], np.float32)


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def embedder(encoder):
    made = Embedder(lambda _: encoder, turns=Turns(), max_waiting=2, used=UsedTokens())
    yield made
    encoder.go.set()
    made.close()


def begin(embedder, encoder, *orders):
    """Submit orders while the first one is being computed."""
    first, *others = orders
    futures = [embedder.submit(encoder, first)]
    assert encoder.begun.wait(PATIENCE_SECONDS)
    return futures + [embedder.submit(encoder, rows) for rows in others]


def test_requests_take_turns(embedder, encoder):
    large, small = begin(embedder, encoder, [[token] for token in (1, 2, 3, 4, 5)], [[9]])
    encoder.go.set()
    assert small.result(PATIENCE_SECONDS).tolist() == [[9]]
    assert large.result(PATIENCE_SECONDS).tolist() == [[1], [2], [3], [4], [5]]
    assert encoder.computed == [1, 9, 2, 3, 4, 5]
    assert embedder._used.prompt_tokens == 6


def test_who_leaves_costs_nothing_more(embedder, encoder):
    left, other = begin(embedder, encoder, [[1], [2], [3]], [[9]])
    assert left.cancel()
    encoder.go.set()
    assert other.result(PATIENCE_SECONDS).tolist() == [[9]]
    assert 3 not in encoder.computed


def test_what_was_computed_is_counted_for_who_left_too(embedder, encoder):
    counted = []
    left = embedder.submit(encoder, [[1, 1], [2, 2, 2], [3]], counted.append)
    assert encoder.begun.wait(PATIENCE_SECONDS)
    other = embedder.submit(encoder, [[9], [8, 8]], counted.append)
    assert left.cancel()
    encoder.go.set()
    other.result(PATIENCE_SECONDS)
    # The pass that was going on when its caller left, then those of the other.
    assert counted == [2, 1, 2] and embedder._used.prompt_tokens == 5


def test_too_many_are_refused(embedder, encoder):
    begin(embedder, encoder, *[[[1]]] * 4)
    with pytest.raises(RequestError) as caught:
        embedder.submit(encoder, [[1]])
    assert caught.value.code == "overloaded"


def test_a_fault_is_told_to_one_and_the_others_go_on(embedder, encoder):
    broken, other = begin(embedder, encoder, [[13]], [[9]])
    encoder.go.set()
    with pytest.raises(TunesmithError) as caught:
        broken.result(PATIENCE_SECONDS)
    assert caught.value.code == "answer_failed" and "broken" not in str(caught.value)
    assert other.result(PATIENCE_SECONDS).tolist() == [[9]]


def test_closing_ends_what_waits(embedder, encoder):
    first, waiting = begin(embedder, encoder, [[1], [2]], [[9]])
    closing = threading.Thread(target=embedder.close)
    closing.start()
    while not embedder._is_closing:
        pass
    encoder.go.set()
    closing.join(PATIENCE_SECONDS)
    for order in (first, waiting):
        with pytest.raises(RequestError) as caught:
            order.result(PATIENCE_SECONDS)
        assert caught.value.code == "stopping"
    with pytest.raises(RequestError):
        embedder.submit(encoder, [[1]])
