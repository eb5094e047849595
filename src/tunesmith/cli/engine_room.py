"""The one place where the commands reach what is heavy.

Importing `tunesmith.api` loads torch and transformers, which takes seconds. `tunesmith --help`, a mistyped option or a
wrong setting must be answered at once. So what stands here under a module's name loads the module when something of it
is first used: after a command has read its arguments and found them sound.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Later:
    """A module that is loaded when something of it is first used."""

    def __init__(self, name: str) -> None:
        """Name the module."""
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    from tunesmith import api
    from tunesmith.evaluate import arms, side_by_side
    from tunesmith.runs import worker_process
else:
    api = _Later("tunesmith.api")
    arms = _Later("tunesmith.evaluate.arms")
    side_by_side = _Later("tunesmith.evaluate.side_by_side")
    worker_process = _Later("tunesmith.runs.worker_process")

#: Doors don't import each other; `tunesmith serve` opens this one by its name, as a user of Python would.
rest_server: Any = _Later("tunesmith.rest.server")

rest_webhooks: Any = _Later("tunesmith.rest.webhook_sending")

#: The record comes with SQLAlchemy.
access_record: Any = _Later("tunesmith.record.access")
audit_record: Any = _Later("tunesmith.record.audit")
backup_record: Any = _Later("tunesmith.record.backup")
database_record: Any = _Later("tunesmith.record.database")
restore_record: Any = _Later("tunesmith.record.restore")
store_record: Any = _Later("tunesmith.record.store")
webhook_record: Any = _Later("tunesmith.record.webhooks")

__all__ = [
    "access_record",
    "api",
    "arms",
    "audit_record",
    "backup_record",
    "database_record",
    "rest_server",
    "rest_webhooks",
    "restore_record",
    "side_by_side",
    "store_record",
    "webhook_record",
    "worker_process",
]
