"""What the routes of the platform work with; the application keeps it as `app.state.platform`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import Request

from tunesmith.record.access import Access
from tunesmith.record.completions import Completions
from tunesmith.record.database import Database
from tunesmith.record.files import Files
from tunesmith.record.home import Home
from tunesmith.record.store import Store
from tunesmith.record.uploads import Uploads
from tunesmith.rest.keyring import check_has_key
from tunesmith.rest.ledger import Ledger
from tunesmith.runs.queue import JobQueue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec

#: Uploads that write to the disk at the same moment; others wait for their turn. Answers have threads of their own.
_FILE_THREADS = 8
#: What waits for the record at the same moment: answers that are stored or read again, jobs, permissions, claims of
#: Idempotency-Keys. Others never wait for a database that is slow.
_KEEPING_THREADS = 8
#: Looks at how the server is: one that waited behind writers would say that nothing works.
_LOOKING_THREADS = 2


@dataclass(slots=True)
class Platform:
    """The record and everything that stands on it. Make one with `open_platform`, and `close` it."""

    home: Home
    spec: ServeSpec
    database: Database
    store: Store
    pool: ModelPool
    files: Files
    uploads: Uploads
    completions: Completions
    access: Access
    ledger: Ledger
    queue: JobQueue
    file_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="files")
    )
    keeping_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_KEEPING_THREADS, thread_name_prefix="keep answers")
    )
    looking_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_LOOKING_THREADS, thread_name_prefix="look")
    )

    def close(self) -> None:
        """Wait for what is being written, and close the database."""
        self.file_threads.shutdown()
        self.keeping_threads.shutdown()
        self.looking_threads.shutdown(wait=False, cancel_futures=True)
        self.ledger.close()
        self.database.close()


def open_platform(spec: ServeSpec, home: Home, pool: ModelPool) -> Platform:
    """Open the record that the environment names; its tables are created or brought up to date.

    Raises:
        SpecError: the URL of the database isn't one, or other machines can reach the server and no key is there.
        StorageError: the database can't be opened or is of a newer version, or the store's URL can't be used.
    """
    database = Database.from_environment(home)
    store = Store.from_environment(home)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    check_has_key(spec, access)
    return Platform(
        home=home,
        spec=spec,
        database=database,
        store=store,
        pool=pool,
        files=Files(database, store),
        uploads=Uploads(database, store),
        completions=Completions(database),
        access=access,
        ledger=Ledger(database),
        queue=JobQueue(database),
    )


def platform_of(http: Request) -> Platform:
    """Return the platform of the application that a request came to."""
    platform: Platform = http.app.state.platform
    return platform
