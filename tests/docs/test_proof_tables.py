"""The tables of what is proved say what tests said, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import proof_results
import proof_tables
from proof_results import existing_tests, keep, load_results, proved_by, read_report
from proof_tables import catalogue_table, items_table

#: Rows that belong to what is built later; some of their tests are there.
_OF_OTHERS = {"A12", "A13"}

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite>
<testcase classname="tests.conformance.test_files" name="test_item_07_lists[sqlite]"/>
<testcase classname="tests.conformance.test_files" name="test_item_07_lists[postgresql]"><skipped/></testcase>
<testcase classname="tests.conformance.test_node" name="test_item_08_content_is_byte_identical"/>
<testcase classname="tests.conformance.test_files" name="test_item_09_delete[sqlite]"><failure/></testcase>
<testcase classname="tests.conformance.test_bad_uploads" name="test_B01_harmless_forms"/>
<testcase classname="tests.conformance.test_gone" name="test_item_10_that_was_removed"/>
<testcase classname="tests.docs.test_links" name="test_links_lead_somewhere"/>
</testsuite></testsuites>
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Results of one report and nothing else."""
    monkeypatch.setattr(proof_results, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(proof_tables, "LOAD", tmp_path / "load.json")
    report = tmp_path / "report.xml"
    report.write_text(REPORT, encoding="utf-8")
    keep([report], is_long=False)
    return tmp_path


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_names_say_what_is_proved():
    assert proved_by("test_item_07_lists") == ["07"]
    assert proved_by("test_item_69_70_every_refusal") == ["69", "70"]
    assert proved_by("test_B11_A05_A06_A21_names_are_cleaned") == ["B11", "A05", "A06", "A21"]
    assert proved_by("test_f01_a_killed_worker") == ["F01"]
    assert proved_by("test_item_34_and_21_and_b20_suffixes") == ["34", "21", "B20"]
    assert proved_by("test_l08_64_streams") == ["L08"]
    assert proved_by("test_first_twenty_problems_are_listed") == proved_by("test_links") == []


def test_only_what_ran_counts(kept: Path):
    table = items_table()
    assert row(table, "7")[2:4] == ["passed (1, 1 skipped)", "with Python only"]
    assert row(table, "8")[2:4] == ["not there yet", "passed"]
    assert row(table, "9")[2] == "**failed** (1 of 1)"
    # Its test is gone, so what it once said counts no more.
    assert row(table, "10")[2] == "not there yet"
    assert row(table, "45")[2:] == ["not there yet", "not there yet", "graders come with reinforcement fine-tuning"]
    assert "1 of 75 items pass" in table
    assert row(catalogue_table("B"), "B01")[4].startswith("passed, 20")
    assert row(catalogue_table("B"), "B02")[4] == "not there yet"


def test_newer_results_take_the_place_of_older_ones(kept: Path):
    report = kept / "report.xml"
    report.write_text(REPORT.replace("<failure/>", ""), encoding="utf-8")
    keep([report], is_long=False)
    assert row(items_table(), "9")[2] == "passed"
    keep([report], is_long=True)
    assert "long: passed" in row(catalogue_table("B"), "B01")[4]


def test_a_report_is_read_by_test(kept: Path):
    found = read_report(kept / "report.xml", "2026-11-21")
    assert found["tests/conformance/test_files.py::test_item_07_lists"] == {
        "passed": 1,
        "skipped": 1,
        "on": "2026-11-21",
    }


def test_what_the_pages_say_is_of_tests_that_are_there():
    results = load_results()
    gone = {*results["tests"], *results["long_tests"]} - existing_tests()
    assert gone == set(), "run `make proof` and commit what it writes"


def test_every_row_and_item_has_a_test_or_a_load_or_is_for_later():
    proved = {subject for test in existing_tests() for subject in proved_by(test.partition("::")[2])}
    rows = yaml.safe_load((proof_tables.PROOF / "catalogue.yaml").read_text(encoding="utf-8"))
    items = yaml.safe_load((proof_tables.PROOF / "items.yaml").read_text(encoding="utf-8"))
    assert items.keys() == set(range(1, 76))
    scripts = proof_results.ROOT / "bench" / "load" / "__main__.py"
    measured = set(re.findall(r'^    "(L\d\d)": ', scripts.read_text(encoding="utf-8"), re.M))
    assert rows.keys() - proved - measured == set()
    assert {number for number in items if f"{number:02}" not in proved} == {
        number for number, item in items.items() if "later" in item
    }
    # What tests say they prove is in the tables.
    assert proved <= rows.keys() | {f"{number:02}" for number in items} | _OF_OTHERS


def test_numbers_of_loads_are_shown(kept: Path):
    bar = {"what": "p99", "measured": "12 ms", "bar": "at most 250 ms", "is_held": False}
    results = {"machine": "two cores", "runs": {"L01": {"on": "2026-11-21", "work": "lists", "bars": [bar]}}}
    (kept / "load.json").write_text(json.dumps(results), encoding="utf-8")
    assert row(proof_tables.load_table(), "L01")[1:5] == ["p99", "12 ms", "at most 250 ms", "**not held**"]
    assert row(catalogue_table("L"), "L01")[4] == "measured: 0 of 1 bars held, 2026-11-21"
