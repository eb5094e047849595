"""A process that writes numbered rows until it is killed or has written enough; started by the tests beside it.

python writing.py URL NAME COUNT     prints the number of each row once the database has it for good
"""

from __future__ import annotations

import sys

from tunesmith.record.database import Database
from tunesmith.record.tables import blobs, files, projects


def write(database: Database, name: str, number: int) -> None:
    """Write two rows that belong together, and a third."""
    sha256 = f"{name}-{number}-".ljust(64, "0")

    def rows(connection):
        connection.execute(projects.insert().values(id=sha256, name=name, organization_id="o", created_at=number))
        connection.execute(blobs.insert().values(sha256=sha256, bytes=1, created_at=1))
        connection.execute(
            files.insert().values(
                id=sha256,
                project_id=sha256,
                created_at=1,
                filename="f",
                purpose="p",
                bytes=1,
                sha256=sha256,
                status="uploaded",
            )
        )

    database.retry(rows, attempts=100)


def main() -> None:
    """Write and tell."""
    url, name, count = sys.argv[1:]
    database = Database(url)
    for number in range(int(count)):
        write(database, name, number)
        print(number, flush=True)


if __name__ == "__main__":
    main()
