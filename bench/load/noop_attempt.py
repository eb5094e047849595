"""An attempt that trains nothing: it says that it was there and ends its job. Imports little, so that it starts fast.

python noop_attempt.py RECORD --job ftjob-... --fence 1
"""

import argparse
import sqlite3
import time

from tunesmith.runs.exit_codes import DONE, STALE


def end_job(record: str, job_id: str, fence: int) -> int:
    """End the job in its name, if it still is its attempt; return the exit code."""
    connection = sqlite3.connect(record, timeout=60, isolation_level=None)
    now = int(time.time())
    connection.execute("BEGIN IMMEDIATE")
    ended = connection.execute(
        "UPDATE jobs SET state = 'succeeded', finished_at = ?, lease_owner = NULL, fence = fence + 1"
        " WHERE id = ? AND fence = ? AND state = 'running'",
        (now, job_id, fence),
    ).rowcount
    connection.execute(
        "INSERT INTO events (id, created_at, job_id, level, type, message) VALUES (?, ?, ?, 'info', 'message', ?)",
        (f"ftevent-{job_id[6:]}{fence:04}", now, job_id, f"done by {fence}"),
    )
    connection.execute("COMMIT")
    connection.close()
    return DONE if ended else STALE


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("record")
    parser.add_argument("--job", required=True)
    parser.add_argument("--fence", type=int, required=True)
    asked = parser.parse_args()
    raise SystemExit(end_job(asked.record, asked.job, asked.fence))
