"""Both databases keep the same promises."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import exc, func, select

from tunesmith.errors import RequestError, SpecError, StorageError
from tunesmith.record.database import Database
from tunesmith.record.tables import files, job_metadata, projects
from tunesmith.record.turns import FairLock


def row(name: str) -> dict:
    return {"id": f"proj_{name}", "name": name, "organization_id": "org", "created_at": 1}


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(projects.c.name).order_by(projects.c.seq)))


def test_a_write_is_there_when_its_block_ends_well_and_gone_when_not(database):
    with database.write() as connection:
        connection.execute(projects.insert().values(row("kept")))
        assert names(database) == []
    with pytest.raises(KeyError), database.write() as connection:
        connection.execute(projects.insert().values(row("lost")))
        raise KeyError
