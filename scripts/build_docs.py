"""Write the generated parts of docs/ again, or say which of them are stale.

    python scripts/build_docs.py            write them (`make docs`)
    python scripts/build_docs.py --check    change nothing; exit code 1 when a part is stale

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`; what stands around it is written
by hand. Names: `commands`, `command NAME`, `settings SPEC`, `figures SPEC`, `schema SPEC`, `proof TABLE`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from command_reference import command_reference, command_table
from proof_tables import PARTS, proof_part
from spec_reference import figures_table, json_schema, settings_reference
from tunesmith.specs.base import Spec
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.jobs import JobSettings
from tunesmith.specs.results import GenerateFigures, TuneFigures
from tunesmith.specs.serving import ServeSpec
from tunesmith.specs.tune import TuneSpec

DOCS = Path(__file__).parent.parent / "docs"
SPECS: dict[str, type[Spec]] = {
    spec.__name__: spec for spec in (TuneSpec, JobSettings, SamplingSpec, ServeSpec, TuneFigures, GenerateFigures)
}

_PART = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[^>]+?) -->\n)(?P<text>.*?)(?P<end><!-- end of (?P=name) -->)", re.DOTALL
)


def generate(name: str) -> str:
    """Return the text of a generated part.

    Raises:
        SystemExit: there is no part of this name.
    """
    kind, _, subject = name.partition(" ")
    match kind:
        case "commands":
            return command_table()
        case "command":
            return command_reference(subject)
        case "settings" if subject in SPECS:
            return settings_reference(SPECS[subject])
        case "figures" if subject in SPECS:
            return figures_table(SPECS[subject])
        case "schema" if subject in SPECS:
            return json_schema(SPECS[subject])
        case "proof" if subject in PARTS:
            return proof_part(subject)
    raise SystemExit(f"There is no generated part called {name!r}.")


def with_fresh_parts(page: str) -> str:
    """Return a page with every generated part written again."""
    return _PART.sub(lambda part: f"{part['begin']}\n{generate(part['name'])}\n{part['end']}", page)


def main() -> int:
    """Write or check every page; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a part is stale")
    is_check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        fresh = with_fresh_parts(page)
        if fresh != page:
            stale.append(str(path.relative_to(DOCS.parent)))
            if not is_check:
                path.write_text(fresh, encoding="utf-8")
    for name in stale:
        print(f"{'stale' if is_check else 'written'}: {name}")
    if is_check and stale:
        print("Run `make docs` and commit what it writes.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
