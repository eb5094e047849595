"""All tables of the record.

Every table whose rows lists show has `seq`, a number that grows with each row: order and cursors never depend on the
clock. Numbers are given in the order of writing, and a number is never given twice. `created_at` and its like are whole
Unix seconds.

Whoever changes a table writes the migration with `python scripts/write_migration.py`; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from tunesmith.record.column_types import Json, Text, Whole

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _table(name: str, *parts: Any) -> Table:
    """Return a table of rows that lists show: `seq`, `id` and `created_at` come first."""
    return Table(
        name,
        metadata,
        Column("seq", Whole, primary_key=True, autoincrement=True),
        Column("id", Text, nullable=False, unique=True),
        Column("created_at", Whole, nullable=False),
        *parts,
        sqlite_autoincrement=True,
    )


def _project() -> Column[str]:
    """Return the column of the project that a row belongs to."""
    return Column("project_id", Text, ForeignKey("projects.id"), nullable=False)


# Access.

projects = _table(
    "projects",
    Column("name", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("archived_at", Whole),
)

keys = _table(
    "keys",
    _project(),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("scopes", Json, nullable=False),
    Column("limits", Json, nullable=False),
    Column("expires_at", Whole),
    Column("last_used_at", Whole),
    Column("revoked_at", Whole),
    Index(None, "project_id", "seq"),
)

key_usage = Table(
    "key_usage",
    metadata,
    Column("key_id", Text, ForeignKey("keys.id"), nullable=False),
    # Days since 1970, in UTC.
    Column("day", Whole, nullable=False),
    Column("tokens", Whole, nullable=False),
    PrimaryKeyConstraint("key_id", "day"),
)

audit = _table(
    "audit",
    # No foreign keys: the log outlives what it tells of, and tells of callers who are nobody.
    Column("project_id", Text),
    Column("key_id", Text),
    Column("action", Text, nullable=False),
    Column("target", Text),
    Column("outcome", Text, nullable=False),
    Column("request_id", Text),
    Column("detail", Json),
    Index(None, "project_id", "seq"),
    Index(None, "created_at"),
)

idempotency = Table(
    "idempotency",
    metadata,
    _project(),
    Column("key", Text, nullable=False),
    Column("request_sha256", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("status", Whole),
    Column("headers", Json),
    Column("body", Json),
    Column("created_at", Whole, nullable=False),
    Column("expires_at", Whole, nullable=False),
    PrimaryKeyConstraint("project_id", "key"),
    Index(None, "expires_at"),
)

# Files. A blob is content, named by its hash; rows that need it name it, and what no row names is swept.

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("bytes", Whole, nullable=False),
    Column("created_at", Whole, nullable=False),
    CheckConstraint("length(sha256) = 64", name="sha256"),
    CheckConstraint("bytes >= 0", name="bytes"),
)

files = _table(
    "files",
    _project(),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", Whole, nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("status", Text, nullable=False),
    Column("status_details", Text),
    Column("expires_at", Whole),
    Index(None, "project_id", "seq"),
    Index(None, "project_id", "purpose", "seq"),
    Index(None, "sha256"),
    Index(None, "expires_at"),
)

uploads = _table(
    "uploads",
    _project(),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("bytes", Whole, nullable=False),
    Column("status", Text, nullable=False),
    Column("expires_at", Whole, nullable=False),
    Column("expires_after", Json),
    Column("file_id", Text),
    Index(None, "project_id", "seq"),
    Index(None, "status", "expires_at"),
)

parts = _table(
    "parts",
    _project(),
    Column("upload_id", Text, ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    Column("bytes", Whole, nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Index(None, "upload_id", "seq"),
    Index(None, "sha256"),
)

# Jobs. A job pins the content of its files: the rows of the files may go, their blobs stay.

jobs = _table(
    "jobs",
    _project(),
    Column("state", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("base", Text),
    Column("suffix", Text),
    Column("metadata", Json),
    Column("seed", Whole, nullable=False),
    Column("method", Json, nullable=False),
    Column("hyperparameters", Json),
    Column("integrations", Json),
    Column("spec", Json),
    Column("training_file", Text, nullable=False),
    Column("training_sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("validation_file", Text),
    Column("validation_sha256", Text, ForeignKey("blobs.sha256")),
    # The queue: higher priorities first, then in order; a retry waits until `not_before`.
    Column("priority", Whole, nullable=False, server_default="0"),
    Column("not_before", Whole, nullable=False, server_default="0"),
    Column("attempts", Whole, nullable=False, server_default="0"),
    Column("lease_owner", Text),
    # An owner is alive while `beat` grows: no clocks are compared. `fence` is another number for each attempt.
    Column("beat", Whole, nullable=False, server_default="0"),
    Column("fence", Whole, nullable=False, server_default="0"),
    # The newest step whose weights are kept.
    Column("step", Whole, nullable=False, server_default="0"),
    # The result.
    Column("started_at", Whole),
    Column("finished_at", Whole),
    Column("estimated_finish", Whole),
    Column("trained_tokens", Whole),
    Column("fine_tuned_model", Text),
    Column("result_files", Json),
    Column("error", Json),
    Index(None, "project_id", "seq"),
    Index(None, "training_sha256"),
    Index(None, "validation_sha256"),
    Index(None, "fine_tuned_model"),
)
# Just the order of the queue, else each claim would sort all that waits.
Index("ix_jobs_queue", jobs.c.state, jobs.c.priority.desc(), jobs.c.seq)

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "key"),
    Index(None, "key", "value", "job_id"),
)

events = _table(
    "events",
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("level", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Json),
    # The training step it tells of: told once, however many attempts take the step.
    Column("step", Whole),
    UniqueConstraint("job_id", "step"),
    Index(None, "job_id", "seq"),
)

job_checkpoints = _table(
    "job_checkpoints",
    _project(),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("step", Whole, nullable=False),
    Column("model", Text, nullable=False, unique=True),
    Column("folder", Text, nullable=False),
    Column("metrics", Json, nullable=False),
    UniqueConstraint("job_id", "step"),
    Index(None, "job_id", "seq"),
)

permissions = _table(
    "permissions",
    # The project that may use the model, not the one that made it.
    _project(),
    Column("model", Text, nullable=False),
    UniqueConstraint("model", "project_id"),
    Index(None, "model", "seq"),
)

# Stored chat completions.

completions = _table(
    "completions",
    _project(),
    Column("model", Text, nullable=False),
    Column("request_id", Text),
    Column("request", Json, nullable=False),
    Column("response", Json, nullable=False),
    Index(None, "project_id", "seq"),
    Index(None, "project_id", "model", "seq"),
)

# A prompt's messages are read by themselves: lists of completions don't carry them along.
completion_messages = _table(
    "completion_messages",
    Column("completion_id", Text, ForeignKey("completions.id", ondelete="CASCADE"), nullable=False),
    Column("message", Json, nullable=False),
    Index(None, "completion_id", "seq"),
)

completion_metadata = Table(
    "completion_metadata",
    metadata,
    Column("completion_id", Text, ForeignKey("completions.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("completion_id", "key"),
    Index(None, "key", "value", "completion_id"),
)

# Responses. Each names the one that it goes on from, which may be gone: what is deleted isn't there any more.

responses = _table(
    "responses",
    _project(),
    Column("previous_id", Text),
    # Of the whole conversation up to here.
    Column("links", Whole, nullable=False),
    Column("bytes", Whole, nullable=False),
    Column("input", Json, nullable=False),
    Column("response", Json, nullable=False),
    Index(None, "created_at"),
)

# Webhooks.

webhooks = _table(
    "webhooks",
    _project(),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    # A signature needs the secret itself.
    Column("secret", Text, nullable=False),
    # One that was replaced signs as well until then, where that was asked for.
    Column("old_secret", Text),
    Column("old_secret_until", Whole),
    Column("event_types", Json, nullable=False),
    Column("allows_private", Whole, nullable=False, server_default="0"),
    Column("disabled_at", Whole),
    Index(None, "project_id", "seq"),
)

deliveries = _table(
    "deliveries",
    Column("webhook_id", Text, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Whole, nullable=False, server_default="0"),
    Column("next_attempt_at", Whole, nullable=False),
    Column("last_status", Whole),
    Column("last_error", Text),
    Column("delivered_at", Whole),
    UniqueConstraint("webhook_id", "event_id"),
    Index(None, "state", "next_attempt_at"),
)

# Workers, as long as they live: `beat` grows.

workers = Table(
    "workers",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("started_at", Whole, nullable=False),
    Column("beat", Whole, nullable=False),
    Column("seen_at", Whole, nullable=False),
)

# What PostgreSQL is asked when a connection breaks during a commit (record/postgresql.py).

writers = Table(
    "writers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Whole, nullable=False),
    Column("updated_at", Whole, nullable=False),
)
