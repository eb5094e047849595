"""The first tables.

audit, blobs, projects, workers, writers, completions, files, idempotency, jobs, keys, permissions, responses,
uploads, webhooks, completion_messages, completion_metadata.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Bring the tables up to date."""
    _audit()
    _blobs()
    _projects()
    _workers()
    _writers()
    _completions()
    _files()
    _idempotency()
    _jobs()
    _keys()
    _permissions()
    _responses()
    _uploads()
    _webhooks()
    _completion_messages()
    _completion_metadata()


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_created_at"), "audit", ["created_at"], unique=False)
    op.create_index(op.f("ix_audit_project_id_seq"), "audit", ["project_id", "seq"], unique=False)


def _blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", _WHOLE, nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_blobs_bytes")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_blobs_sha256")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("archived_at", _WHOLE, nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_projects")),
        sa.UniqueConstraint("id", name=op.f("uq_projects_id")),
        sqlite_autoincrement=True,
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("started_at", _WHOLE, nullable=False),
        sa.Column("beat", _WHOLE, nullable=False),
        sa.Column("seen_at", _WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_workers")),
    )


def _writers() -> None:
    op.create_table(
        "writers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", _WHOLE, nullable=False),
        sa.Column("updated_at", _WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_writers")),
    )


def _completions() -> None:
    op.create_table(
        "completions",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_completions_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_completions")),
        sa.UniqueConstraint("id", name=op.f("uq_completions_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_completions_project_id_model_seq"), "completions", ["project_id", "model", "seq"], unique=False
    )
    op.create_index(op.f("ix_completions_project_id_seq"), "completions", ["project_id", "seq"], unique=False)


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", _WHOLE, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_details", sa.Text(), nullable=True),
        sa.Column("expires_at", _WHOLE, nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_files_project_id")),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_files_sha256")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_files")),
        sa.UniqueConstraint("id", name=op.f("uq_files_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_files_expires_at"), "files", ["expires_at"], unique=False)
    op.create_index(op.f("ix_files_project_id_purpose_seq"), "files", ["project_id", "purpose", "seq"], unique=False)
    op.create_index(op.f("ix_files_project_id_seq"), "files", ["project_id", "seq"], unique=False)
    op.create_index(op.f("ix_files_sha256"), "files", ["sha256"], unique=False)


def _idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", _WHOLE, nullable=True),
        sa.Column("headers", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("expires_at", _WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_idempotency_project_id")),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_expires_at"), "idempotency", ["expires_at"], unique=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("suffix", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("seed", _WHOLE, nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("hyperparameters", sa.Text(), nullable=True),
        sa.Column("integrations", sa.Text(), nullable=True),
        sa.Column("spec", sa.Text(), nullable=True),
        sa.Column("training_file", sa.Text(), nullable=False),
        sa.Column("training_sha256", sa.Text(), nullable=False),
        sa.Column("validation_file", sa.Text(), nullable=True),
        sa.Column("validation_sha256", sa.Text(), nullable=True),
        sa.Column("priority", _WHOLE, server_default="0", nullable=False),
        sa.Column("not_before", _WHOLE, server_default="0", nullable=False),
        sa.Column("attempts", _WHOLE, server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("beat", _WHOLE, server_default="0", nullable=False),
        sa.Column("fence", _WHOLE, server_default="0", nullable=False),
        sa.Column("step", _WHOLE, server_default="0", nullable=False),
        sa.Column("started_at", _WHOLE, nullable=True),
        sa.Column("finished_at", _WHOLE, nullable=True),
        sa.Column("estimated_finish", _WHOLE, nullable=True),
        sa.Column("trained_tokens", _WHOLE, nullable=True),
        sa.Column("fine_tuned_model", sa.Text(), nullable=True),
        sa.Column("result_files", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_jobs_project_id")),
        sa.ForeignKeyConstraint(["training_sha256"], ["blobs.sha256"], name=op.f("fk_jobs_training_sha256")),
        sa.ForeignKeyConstraint(["validation_sha256"], ["blobs.sha256"], name=op.f("fk_jobs_validation_sha256")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_jobs_fine_tuned_model"), "jobs", ["fine_tuned_model"], unique=False)
    op.create_index(op.f("ix_jobs_project_id_seq"), "jobs", ["project_id", "seq"], unique=False)
    op.create_index(op.f("ix_jobs_state_priority_seq"), "jobs", ["state", "priority", "seq"], unique=False)
    op.create_index(op.f("ix_jobs_training_sha256"), "jobs", ["training_sha256"], unique=False)
    op.create_index(op.f("ix_jobs_validation_sha256"), "jobs", ["validation_sha256"], unique=False)


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("expires_at", _WHOLE, nullable=True),
        sa.Column("last_used_at", _WHOLE, nullable=True),
        sa.Column("revoked_at", _WHOLE, nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_keys_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_keys_hash")),
        sa.UniqueConstraint("id", name=op.f("uq_keys_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_keys_project_id_seq"), "keys", ["project_id", "seq"], unique=False)


def _permissions() -> None:
    op.create_table(
        "permissions",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_permissions_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_permissions")),
        sa.UniqueConstraint("id", name=op.f("uq_permissions_id")),
        sa.UniqueConstraint("model", "project_id", name=op.f("uq_permissions_model_project_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_permissions_model_seq"), "permissions", ["model", "seq"], unique=False)


def _responses() -> None:
    op.create_table(
        "responses",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("previous_id", sa.Text(), nullable=True),
        sa.Column("links", _WHOLE, nullable=False),
        sa.Column("bytes", _WHOLE, nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_responses_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_responses")),
        sa.UniqueConstraint("id", name=op.f("uq_responses_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_responses_created_at"), "responses", ["created_at"], unique=False)


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("bytes", _WHOLE, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("expires_at", _WHOLE, nullable=False),
        sa.Column("expires_after", sa.Text(), nullable=True),
        sa.Column("file_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_uploads_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_uploads")),
        sa.UniqueConstraint("id", name=op.f("uq_uploads_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_uploads_project_id_seq"), "uploads", ["project_id", "seq"], unique=False)
    op.create_index(op.f("ix_uploads_status_expires_at"), "uploads", ["status", "expires_at"], unique=False)


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("event_types", sa.Text(), nullable=False),
        sa.Column("allows_private", _WHOLE, server_default="0", nullable=False),
        sa.Column("disabled_at", _WHOLE, nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_webhooks_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("id", name=op.f("uq_webhooks_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_webhooks_project_id_seq"), "webhooks", ["project_id", "seq"], unique=False)


def _completion_messages() -> None:
    op.create_table(
        "completion_messages",
        sa.Column("seq", _WHOLE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completions.id"], name=op.f("fk_completion_messages_completion_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_completion_messages")),
        sa.UniqueConstraint("id", name=op.f("uq_completion_messages_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_completion_messages_completion_id_seq"), "completion_messages", ["completion_id", "seq"], unique=False
    )


def _completion_metadata() -> None:
    op.create_table(
        "completion_metadata",
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completions.id"], name=op.f("fk_completion_metadata_completion_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("completion_id", "key", name=op.f("pk_completion_metadata")),
    )
    op.create_index(
        op.f("ix_completion_metadata_key_value_completion_id"),
        "completion_metadata",
        ["key", "value", "completion_id"],
        unique=False,
    )
