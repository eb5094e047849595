"""The tables come about, from nothing or from an older version, whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from tunesmith.errors import StorageError
from tunesmith.record import schema
from tunesmith.record.database import Database
from tunesmith.record.tables import keys, metadata, projects

MIGRATIONS = Path(schema.__file__).parent / "migrations"

#: What the next release might do: SQLite makes the table anew, and rows of `keys` point at it.
NEXT = """
    import sqlalchemy as sa
    from alembic import op

    revision = "9999"
    down_revision = "{head}"

    def upgrade():
        op.create_table("brand_new", sa.Column("id", sa.Text, primary_key=True))
        is_made_anew = "always" if op.get_bind().dialect.name == "sqlite" else "auto"
        with op.batch_alter_table("projects", recreate=is_made_anew) as batch:
            batch.alter_column("archived_at", new_column_name="closed_at")
        op.execute(sa.text("UPDATE projects SET name = name || '!'"))
"""

#: Dies before the statement of a given number, counted from the first that changes something; at -1, before the commit.
MIGRATE_AND_DIE = """
import os, signal, sys
from sqlalchemy import Engine, event
from tunesmith.record.database import Database
from tunesmith.record import schema

url, folder, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
if folder:
    plain = schema.configuration
    def with_next(connection=None):
        config = plain(connection)
        config.set_main_option("path_separator", "os")
        config.set_main_option("version_locations", os.pathsep.join((str(schema._MIGRATIONS / "versions"), folder)))
        return config
    schema.configuration = with_next
count = 0

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    global count
    count += statement.lstrip().split()[0] in ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")
    if count == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

if die_at == -1:
    event.listen(Engine, "commit", lambda connection: count and os.kill(os.getpid(), signal.SIGKILL))
Database(url).migrate()
"""


def migrate(url: str, folder: Path | None = None, die_at: int = 1_000_000) -> int:
    command = [sys.executable, "-c", MIGRATE_AND_DIE, url, str(folder or ""), str(die_at)]
    return subprocess.run(command, check=False).returncode


def tables(database: Database) -> set[str]:
    with database.read() as connection:
        return set(inspect(connection).get_table_names())


def test_what_is_migrated_is_what_the_tables_say(database):
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == [], (
            "run `python scripts/write_migration.py`"
        )
    assert tables(database) == {*metadata.tables, "alembic_version"}


def test_migrating_again_changes_nothing(database):
    before = tables(database)
    database.migrate()
    database.check()
    assert tables(database) == before


def test_many_processes_migrate_at_once(database_url):
    code = "import sys; from tunesmith.record.database import Database; Database(sys.argv[1]).migrate()"
    processes = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    database = Database(database_url)
    database.check()
    database.close()


@pytest.mark.parametrize("die_at", [1, 2, 9, 25, -1])
def test_f33_killed_while_the_first_tables_are_made(database_url, die_at):
    assert migrate(database_url, die_at=die_at) == -signal.SIGKILL
    database = Database(database_url)
    assert tables(database) == set()
    database.migrate()
    database.check()
    database.close()


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    heads = sorted(path.name[1:5] for path in (MIGRATIONS / "versions").glob("v*.py"))
    folder = tmp_path / "next"
    folder.mkdir()
    (folder / "v9999_next.py").write_text(textwrap.dedent(NEXT.format(head=heads[-1])))
    return folder


@pytest.mark.parametrize("die_at", [1, 2, 3, 4, -1])
def test_f33_an_upgrade_that_is_killed_leaves_the_old_or_the_new(database, database_url, next_release, die_at):
    fill(database)
    database.close()
    assert migrate(database_url, next_release, die_at) == -signal.SIGKILL
    assert "brand_new" not in tables(database)
    database.check()
    assert content(database) == ["old"]
    database.close()
    assert migrate(database_url, next_release) == 0
    assert "brand_new" in tables(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT name, closed_at FROM projects")).all() == [("old!", 17)]
        # Making the table of projects anew didn't take the keys that point at it.
        assert connection.scalar(select(keys.c.id)) == "key"


def fill(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            projects.insert().values(id="p", name="old", organization_id="o", created_at=1, archived_at=17)
        )
        connection.execute(
            keys.insert().values(
                id="key", project_id="p", name="n", hash="h", hint="x", scopes=[], limits={}, created_at=1
            )
        )


def content(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(projects.c.name)))


def test_a_record_of_a_newer_version_is_left_alone(database, database_url, next_release):
    fill(database)
    assert migrate(database_url, next_release) == 0
    for ask in (database.migrate, database.check):
        with pytest.raises(StorageError) as fault:
            ask()
        assert fault.value.code == "record_too_new"


def test_the_wheel_brings_the_migrations():
    """Hatchling packs what git knows of the package."""
    listed = subprocess.run(
        ["git", "ls-files", str(MIGRATIONS)], check=True, capture_output=True, text=True, cwd=MIGRATIONS
    ).stdout.split()
    assert {path.name for path in (MIGRATIONS / "versions").glob("v*.py")} <= {Path(name).name for name in listed}
    assert (MIGRATIONS / "env.py").exists()
