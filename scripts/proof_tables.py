"""Tables of what is proved: the contract's items (docs/openai-compatibility.md), the catalogue (docs/reliability.md).

They say what the newest runs said (docs/proof/results.json) and nothing else: what wasn't run isn't there yet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from proof_results import ROOT, Tests, load_results, proved_by

PROOF = ROOT / "docs" / "proof"
LOAD = ROOT / "bench" / "results" / "load.json"
NOT_YET = "not there yet"
#: Tests of the Node package stand in files of their own.
_NODE = "tests/conformance/test_node"


def items_table() -> str:
    """Return the table of the contract's items with a sentence about all of them."""
    items: dict[int, dict[str, str]] = _read("items.yaml")
    results = load_results()
    tests = by_subject(results["tests"])
    rows, python, node = [], Counter[str](), Counter[str]()
    for number, item in sorted(items.items()):
        found = tests.get(f"{number:02}", {})
        cells = [
            _sdk_cell(item, "python", {name: one for name, one in found.items() if not name.startswith(_NODE)}),
            _sdk_cell(item, "node", {name: one for name, one in found.items() if name.startswith(_NODE)}),
        ]
        python[_word(cells[0])] += 1
        node[_word(cells[1])] += 1
        rows.append([str(number), item["is"], *cells, item.get("remark", item.get("later", ""))])
    versions = results["versions"]
    summary = (
        f"Python package {versions.get('python', '?')}: {python['passed']} of {len(items)} items pass. "
        f"Node package {versions.get('node', '?')}: {node['passed']} items pass, and "
        f"{node['with Python only']} are tried with the Python package only."
    )
    return f"{summary}\n\n{_table(['item', 'what', 'Python', 'Node', 'remarks'], rows)}"


def catalogue_table(kind: str) -> str:
    """Return the table of one kind of rows: `F`, `B`, `A` or `L`."""
    catalogue: dict[str, dict[str, str]] = _read("catalogue.yaml")
    results = load_results()
    short, long = by_subject(results["tests"]), by_subject(results["long_tests"])
    rows = []
    for name, row in catalogue.items():
        if not name.startswith(kind):
            continue
        said = [one for one in (_short(short.get(name, {})), _long(long.get(name, {})), _measured(name)) if one]
        tests = sorted({test for found in (short, long) for test in found.get(name, {})})
        where = "<br>".join(sorted({f"`{test.partition('::')[0].removeprefix('tests/')}`" for test in tests}))
        holds = row["holds"] + (f". {row['remark']}" if "remark" in row else "")
        rows.append([name, row["is"], holds, where, "<br>".join(said) or NOT_YET])
    return _table(["row", "what happens", "what holds", "tests", "last result"], rows)


def load_table() -> str:
    """Return the numbers of the load scripts, with the machine that they ran on."""
    if not LOAD.exists():
        return "Nothing was measured yet: `make load`."
    measured = json.loads(LOAD.read_text(encoding="utf-8"))
    rows = [
        [name, bar["what"], bar["measured"], bar["bar"], "held" if bar["is_held"] else "**not held**", run["on"]]
        for name, run in sorted(measured["runs"].items())
        for bar in run["bars"]
    ]
    notes = [f"- {name}: {run['work']}" for name, run in sorted(measured["runs"].items())]
    head = ["row", "what", "measured", "bar", "", "on"]
    return f"{measured['machine']}\n\n{_table(head, rows)}\n\nThe work:\n\n" + "\n".join(notes)


def by_subject(tests: Tests) -> dict[str, Tests]:
    """Return the results by what they prove."""
    found: dict[str, Tests] = {}
    for test, result in tests.items():
        for subject in proved_by(test.partition("::")[2]):
            found.setdefault(subject, {})[test] = result
    return found


def _sdk_cell(item: Mapping[str, str], sdk: str, tests: Tests) -> str:
    """Return what is known of one item with one package."""
    if tests:
        return _verdict(tests)
    if "later" in item:
        return NOT_YET
    if item.get("one_sdk", sdk) != sdk:
        return "doesn't apply"
    return NOT_YET if sdk == "python" else "with Python only"


def _verdict(tests: Tests) -> str:
    count = _sum(tests)
    if count["failed"]:
        return f"**failed** ({count['failed']} of {sum(count.values())})"
    if not count["passed"]:
        return "skipped"
    if count["skipped"]:
        return f"passed ({count['passed']}, {count['skipped']} skipped)"
    return "passed" + (f" ({count['passed']})" if count["passed"] > 1 else "")


def _short(tests: Tests) -> str:
    return f"{_verdict(tests)}, {_newest(tests)}" if tests else ""


def _long(tests: Tests) -> str:
    return f"long: {_verdict(tests)}, {_newest(tests)}" if tests else ""


def _measured(name: str) -> str:
    if not LOAD.exists():
        return ""
    run = json.loads(LOAD.read_text(encoding="utf-8"))["runs"].get(name)
    if run is None:
        return ""
    held = sum(bar["is_held"] for bar in run["bars"])
    return f"measured: {held} of {len(run['bars'])} bars held, {run['on']}"


def _newest(tests: Tests) -> str:
    return str(max(result["on"] for result in tests.values()))


def _sum(tests: Tests) -> Counter[str]:
    count = Counter[str]()
    for result in tests.values():
        count.update({name: number for name, number in result.items() if name != "on"})
    return count


def _word(cell: str) -> str:
    """Return a cell without its number of cases."""
    return cell.partition(" (")[0]


def _read(name: str) -> Any:
    return yaml.safe_load((PROOF / name).read_text(encoding="utf-8"))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "items": items_table,
    "faults": lambda: catalogue_table("F"),
    "inputs": lambda: catalogue_table("B"),
    "attacks": lambda: catalogue_table("A"),
    "loads": lambda: catalogue_table("L"),
    "load": load_table,
}


def proof_part(name: str) -> str:
    """Return the table of a name, see `PARTS`.

    Raises:
        KeyError: there is none.
    """
    return PARTS[name]()
