"""What a server does beside answering: events go out to webhooks, what has expired and what nothing needs goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from tunesmith.errors import StorageError
from tunesmith.record.blobs import sweep_store
from tunesmith.record.responses import Responses
from tunesmith.record.webhooks import Webhooks
from tunesmith.rest.courier import Courier
from tunesmith.rest.intake import in_thread
from tunesmith.rest.platform import Platform
from tunesmith.runs.model_removal import sweep_models

_INTERVAL_SECONDS = 600.0

_log = logging.getLogger(__name__)


@asynccontextmanager
async def keep_house(platform: Platform) -> AsyncIterator[None]:
    """Keep house until the block ends, for the first time right away."""
    courier = Courier(platform.database)
    task = asyncio.create_task(_keep(platform))
    try:
        yield
    finally:
        await asyncio.to_thread(courier.close)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _keep(platform: Platform) -> None:
    jobs: dict[str, Callable[[], int]] = {
        "expired files were deleted": platform.files.delete_expired,
        "uploads expired": platform.uploads.expire,
        "responses were too old": Responses(platform.database).delete_expired,
        "deliveries to webhooks were forgotten": Webhooks(platform.database).delete_old,
        "pieces of content that nothing needs were swept": partial(sweep_store, platform.database, platform.store),
        "models that no job lists were removed": partial(sweep_models, platform.home, platform.database),
    }
    while True:
        for what, job in jobs.items():
            try:
                count = await in_thread(platform.file_threads, job)
            # The next round tries again; until then expired rows are hidden all the same.
            except (StorageError, OSError) as error:
                _log.warning("housekeeping has to wait: %s", error)
            # One job that fails, for whatever reason, must not end all others for good, nor the server's stop.
            except Exception as error:
                _log.error("a part of the housekeeping failed", exc_info=error)
            else:
                if count:
                    _log.info("%s %s", count, what)
        await asyncio.sleep(_INTERVAL_SECONDS)
