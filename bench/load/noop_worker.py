"""A worker whose attempts train nothing: `python noop_worker.py '["command", ...]' DEVICE`."""

import json
import sys

from tunesmith.record.home import Home
from tunesmith.runs.worker import WorkerSettings
from tunesmith.runs.worker_process import run_worker

if __name__ == "__main__":
    run_worker(WorkerSettings(devices=(sys.argv[2],), attempt=tuple(json.loads(sys.argv[1]))), Home.from_environment())
