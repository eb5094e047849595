"""Keep what tests said about the contract's items and the catalogue's rows: pytest's own reports into one small file.

    make proof                                      run the tests, keep their results, write the pages again
    python scripts/proof_results.py REPORT.xml      keep the results of `pytest --junitxml REPORT.xml`
    python scripts/proof_results.py --long ...      the report is of `make soak`, whose tests take long

A test says by its name what it proves: `test_item_07_...`, `test_item_69_70_...`, `test_f01_...`, `test_b11_a05_...`,
`test_item_19_and_b16_...`.
Only such tests are kept, each with what its newest run said; tests that are gone are forgotten.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "proof" / "results.json"
NODE_LOCK = ROOT / "tests" / "conformance" / "node" / "package-lock.json"

_NUMBER = re.compile(r"\d\d")
_ROW = re.compile(r"[FABL]\d\d")

#: Results of one run: for each test, how many of its cases passed, failed or were skipped, and when.
Tests = dict[str, dict[str, Any]]


def proved_by(name: str) -> list[str]:
    """Return what a test proves by its name: `07` is an item, `F01` a row of the catalogue."""
    found: list[str] = []
    is_item = False
    for word in name.removeprefix("test_").upper().split("_"):
        if word in ("ITEM", "AND"):
            is_item = is_item or word == "ITEM"
        elif _ROW.fullmatch(word) or (is_item and _NUMBER.fullmatch(word)):
            found.append(word)
        else:
            break
    return found


def read_report(path: Path, day: str) -> Tests:
    """Return the results that a report of pytest's holds, by test: `tests/.../test_files.py::test_item_07_lists`."""
    counts: dict[str, Counter[str]] = {}
    # The report is pytest's own.
    for case in ET.parse(path).iter("testcase"):
        name = case.attrib["name"].partition("[")[0]
        if proved_by(name):
            test = f"{case.attrib['classname'].replace('.', '/')}.py::{name}"
            counts.setdefault(test, Counter())[_outcome(case)] += 1
    return {test: {**dict(sorted(found.items())), "on": day} for test, found in counts.items()}


def existing_tests() -> set[str]:
    """Return all tests of the tree that prove something."""
    return {
        f"{path.relative_to(ROOT)}::{name}" for path in (ROOT / "tests").rglob("test_*.py") for name in _tests(path)
    }


def load_results() -> dict[str, Any]:
    """Return what is kept."""
    if not RESULTS.exists():
        return {"versions": {}, "tests": {}, "long_tests": {}}
    loaded: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return loaded


def keep(reports: list[Path], *, is_long: bool) -> None:
    """Add the results of reports to what is kept."""
    results = load_results()
    section = results["long_tests" if is_long else "tests"]
    day = datetime.now(UTC).date().isoformat()
    for report in reports:
        section.update(read_report(report, day))
    there = existing_tests()
    for name in ("tests", "long_tests"):
        results[name] = {test: found for test, found in sorted(results[name].items()) if test in there}
    results["versions"] = {"python": importlib.metadata.version("openai"), "node": _node_version()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _tests(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and proved_by(node.name):
            yield node.name


def _outcome(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def _node_version() -> str:
    lock = json.loads(NODE_LOCK.read_text(encoding="utf-8"))
    return str(lock["packages"]["node_modules/openai"]["version"])


def main() -> None:
    """Keep the reports that are named."""
    parser = argparse.ArgumentParser(description="Keep the results of tests that prove something.")
    parser.add_argument("reports", nargs="+", type=Path, help="files that pytest --junitxml wrote")
    parser.add_argument("--long", action="store_true", help="the tests take long; their results are kept apart")
    asked = parser.parse_args()
    keep(asked.reports, is_long=asked.long)


if __name__ == "__main__":
    main()
