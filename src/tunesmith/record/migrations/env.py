"""Alembic runs this: the migrations go through the connection and the transaction of `schema.upgrade`."""

from __future__ import annotations

from alembic import context

from tunesmith.record.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    # SQLite changes a table by making it anew.
    render_as_batch=True,
)
context.run_migrations()
