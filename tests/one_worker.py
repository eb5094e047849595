"""A worker process with settings of the test's: `python one_worker.py '{"lease_seconds": 3}'`.

Beside those of `WorkerSettings`, `busy_seconds` is how long it waits for the record.
"""

import json
import logging
import sys

from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.runs.worker import WorkerSettings
from tunesmith.runs.worker_process import run_worker

if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()
    }
    Database.__init__.__kwdefaults__["busy_seconds"] = values.pop("busy_seconds", 15.0)
    run_worker(WorkerSettings(**values), Home.from_environment())
