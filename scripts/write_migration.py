"""Write the migration that turns the tables of the newest migration into those of record/tables.py.

    python scripts/write_migration.py "jobs get a colour"     the next migration
    python scripts/write_migration.py --first                 all anew; only while no version is released

Read what it wrote: a renamed column looks to it like one that goes and one that comes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations.ops import (
    CreateIndexOp,
    CreateTableOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.runtime.migration import MigrationContext

from tunesmith.record.column_types import Json, Text, Whole
from tunesmith.record.database import Database
from tunesmith.record.tables import metadata

VERSIONS = Path(__file__).parents[1] / "src" / "tunesmith" / "record" / "migrations" / "versions"
#: Files stay short: many tables make several migrations, which are carried out as one.
MOST_LINES = 230

HEAD = '''"""{title}.

{tables}.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{revision:04}"
down_revision: str | None = {before!r}

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Bring the tables up to date."""
'''


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write types so that they stay what they are today, whatever becomes of our own."""
    if kind == "type" and isinstance(item, Text | Json):
        return "sa.Text()"
    if kind == "type" and item is Whole:
        return "_WHOLE"
    return False


def rendered(step: MigrateOperation) -> str:
    """Return a step as Python, indented by four."""
    is_plain = all(isinstance(part, CreateIndexOp) for part in getattr(step, "ops", ()))
    code = render_python_code(UpgradeOps([step]), render_as_batch=not is_plain, render_item=render_item)
    return "\n".join(line for line in code.splitlines() if "# ###" not in line).strip("\n")


def steps_by_table() -> dict[str, list[str]]:
    """Return, for each table that differs, what is to be done."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/record.db")
        if any(VERSIONS.glob("*.py")):
            database.migrate()
        with database.read() as connection:
            steps = produce_migrations(MigrationContext.configure(connection), metadata).upgrade_ops
        database.close()
    assert steps is not None
    # Tables in the order in which foreign keys need them, which is that of the tables; then what isn't there any more.
    for step in steps.ops:
        assert isinstance(step, CreateTableOp | ModifyTableOps | DropTableOp)
        found.setdefault(step.table_name, []).append(rendered(step))
    order = [table.name for table in metadata.sorted_tables]
    return {name: found[name] for name in sorted(found, key=[*order, *sorted(found.keys() - set(order))].index)}


def write(title: str, tables: dict[str, list[str]], revision: int) -> Path:
    """Write one migration: a function for each table, so that none is long."""
    before = f"{revision - 1:04}" if revision > 1 else None
    listed = "\n".join(textwrap.wrap(", ".join(tables), 110))
    text = HEAD.format(title=title, tables=listed, revision=revision, before=before)
    text += "".join(f"    _{name}()\n" for name in tables)
    for name, steps in tables.items():
        text += f"\n\ndef _{name}() -> None:\n" + "\n".join(steps) + "\n"
    slug = re.sub(r"\W+", "_", title.lower()).strip("_")
    path = VERSIONS / f"v{revision:04}_{slug}.py"
    path.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(path)], check=True)
    return path


def main() -> int:
    """Write as many files as are needed, and print their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("title", nargs="?", default="the first tables")
    parser.add_argument("--first", action="store_true")
    chosen = parser.parse_args()
    if chosen.first:
        for old in VERSIONS.glob("*.py"):
            old.unlink()
    revision = len(list(VERSIONS.glob("*.py")))
    group: dict[str, list[str]] = {}
    groups = [group]
    for name, steps in steps_by_table().items():
        lines = sum(step.count("\n") for one in (*group.values(), steps) for step in one)
        if group and lines > MOST_LINES:
            groups.append(group := {})
        group[name] = steps
    for group in filter(None, groups):
        revision += 1
        print(write(chosen.title.capitalize(), group, revision))
    return 0


if __name__ == "__main__":
    sys.exit(main())
