"""The queue has an index in its own order.

jobs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Bring the tables up to date."""
    _jobs()


def _jobs() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_state_priority_seq"))
        batch_op.create_index("ix_jobs_queue", ["state", sa.literal_column("priority DESC"), "seq"], unique=False)
