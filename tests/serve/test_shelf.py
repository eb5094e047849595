"""Who uses what stays, who waits gets a turn, and there is never more than fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RequestError
from tunesmith.serve.shelf import Shelf


class Desk:
    """A shelf whose things are loaded when `load` is called, on a clock that stands still."""

    def __init__(self, size=2, max_waiting=100, patience_seconds=10.0):
        self.now = 0.0
        self.size = size
        self.starting = []
        self.inside = set()
        self.shelf = Shelf(
            size,
            self.start,
            full=lambda: RequestError("full", code="overloaded"),
            max_waiting=max_waiting,
            patience_seconds=patience_seconds,
            clock=lambda: self.now,
        )

    def start(self, place, evicted):
        if evicted is not None:
            assert evicted.is_idle
            self.inside.remove(evicted)
        self.inside.add(place)
        assert len(self.inside) <= self.size
        self.starting.append(place)

    def load(self, error=None):
        while self.starting:
            place = self.starting.pop(0)
            if error is None:
                place.ready.set_result(place.key)
                self.shelf.arrange()
            else:
                self.inside.remove(place)
                self.shelf.failed(place)
                place.ready.set_exception(error)

    def use(self, key):
        place = self.shelf.take(key)
        self.load()
        return place


def test_the_least_recently_used_goes():
    desk = Desk()
    for key in "abab":
        desk.shelf.give_back(desk.use(key))
    desk.shelf.give_back(desk.use("a"))
    desk.shelf.give_back(desk.use("c"))
    assert desk.shelf.keys == ["a", "c"]


def test_who_finds_everything_in_use_waits_for_the_first_that_is_free():
    desk = Desk()
    a, b, c = (desk.use(key) for key in "abc")
    assert desk.shelf.keys == ["a", "b"] and not c.ready.done()
    desk.shelf.give_back(b)
    desk.load()
    assert desk.shelf.keys == ["a", "c"] and c.ready.result() == "c"
    desk.shelf.give_back(a)
    assert desk.shelf.keys == ["a", "c"]


def test_more_than_may_wait_are_refused_and_leave_nothing_behind():
    desk = Desk(max_waiting=1)
    places = [desk.use(key) for key in "abc"]
    for key in "cde":
        with pytest.raises(RequestError, match="full"):
            desk.use(key)
    assert [place.users for place in places] == [1, 1, 1]
    desk.shelf.give_back(places[2])
    assert desk.use("d").users == 1
    assert desk.use("a") is places[0]


def test_what_is_always_in_use_is_closed_to_new_users_after_a_while():
    desk = Desk(size=1)
    busy = desk.use("a")
    waiting = desk.use("b")
    for second in range(30):
        desk.now = float(second)
        later = desk.use("a")
        if later is not busy:
            break
        desk.shelf.give_back(later)
    assert second == 10 + 1  # whoever comes at ten seconds closes it behind himself
    desk.shelf.give_back(busy)
    desk.load()
    assert waiting.ready.result() == "b" and not later.ready.done()
    desk.now += 10
    assert desk.use("b") is waiting  # has its own patience to fear now
    for _ in range(2):
        desk.shelf.give_back(waiting)
    desk.load()
    assert later.ready.result() == "a"


def test_a_failed_load_leaves_its_room_to_others():
    desk = Desk(size=1)
    first = desk.shelf.take("a")
    second = desk.shelf.take("b")
    desk.load(OSError("gone"))
    assert isinstance(first.ready.exception(), OSError) and isinstance(second.ready.exception(), OSError)
    desk.shelf.give_back(first)
    desk.shelf.give_back(second)
    assert desk.shelf.keys == []
    assert desk.use("a").ready.result() == "a"


def test_who_leaves_while_waiting_is_not_loaded_for():
    desk = Desk(size=1)
    a, b = desk.use("a"), desk.use("b")
    desk.now = 20.0
    desk.shelf.give_back(desk.use("a"))
    desk.shelf.give_back(b)
    assert desk.use("a") is a  # open again, as nobody waits any more
    assert desk.shelf.keys == ["a"]


moves = st.lists(st.tuples(st.sampled_from(["take", "give", "load", "fail", "wait"]), st.integers(0, 5)), max_size=60)


@given(size=st.integers(1, 3), moves=moves)
def test_everybody_is_served_in_the_end_whatever_happens(size, moves):
    desk, using = Desk(size), []
    for what, number in moves:
        if what == "take":
            using.append(desk.shelf.take("abcdef"[number]))
        elif what == "give" and using:
            desk.shelf.give_back(using.pop(number % len(using)))
        elif what == "wait":
            desk.now += 6.0
        elif what in ("load", "fail"):
            desk.load(OSError() if what == "fail" else None)
        assert {place.key for place in using if place in desk.inside} <= set(desk.shelf.keys)
        assert len(desk.shelf.keys) == len(set(desk.shelf.keys)) == len(desk.inside)
    while using:
        desk.load()
        done = next((i for i, place in enumerate(using) if place.ready.done()), None)
        assert done is not None, "somebody waits for ever"
        desk.shelf.give_back(using.pop(done))
    desk.load()
    inside, waiting = desk.shelf.clear()
    assert set(inside) == desk.inside and not waiting and len(inside) <= size
