"""The load scripts: small loads on a real server, and what is kept of what was measured."""

from __future__ import annotations

import json
import math

import pytest

from load.__main__ import QUICK, ROWS, main
from load.bars import Load, at_least, at_most, keep, milliseconds, none_of
from load.crowd import Asked, faults, per_second, percentile


@pytest.mark.soak
def test_small_loads_are_measured():
    lists, followers = QUICK["L01"](), QUICK["L07"]()
    assert [bar.what for bar in lists.bars] == ["lists", "p99", "last page to first page", "5xx and lost"]
    for load in (lists, followers):
        assert all(bar.is_held for bar in load.bars if bar.bar == "none"), load


def test_every_row_has_a_short_form():
    assert QUICK.keys() == ROWS.keys()
    with pytest.raises(SystemExit):
        main(["L99"])


def test_requests_are_summed_up():
    log = [Asked("get", n / 10, 0.1, 200) for n in range(9)] + [Asked("get", 0.9, 0.5, 503), Asked("get", 1.0, 0.1, 0)]
    assert (percentile(log, 0.5), percentile(log, 1.0), percentile([], 0.5)) == (0.1, 0.5, math.inf)
    assert faults(log) == 2
    assert per_second(log) == pytest.approx(10 / 1.4)


def test_results_are_kept_by_row(tmp_path):
    file = tmp_path / "load.json"
    keep(Load("L01", "lists", [at_least("rate", 200, 150, "requests/s"), milliseconds("p99", 0.3, 250)]), file)
    keep(Load("L03", "uploads", [at_most("memory", 12.3, 100, "MB"), none_of("lost", 0)]), file)
    runs = json.loads(file.read_text())["runs"]
    assert [bar["is_held"] for row in ("L01", "L03") for bar in runs[row]["bars"]] == [True, False, True, True]
    assert runs["L01"]["bars"][1]["measured"] == "300 ms"
