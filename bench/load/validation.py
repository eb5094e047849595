"""L05: a long file is checked when it arrives, and again by the job that trains on it."""

from __future__ import annotations

import time

from load.bars import Load, at_least, at_most, milliseconds
from load.crowd import Caller, percentile, pulse
from load.mixture import create_job, upload
from load.server import MemoryWatch, new_home, serving

_LINE = (
    '{{"messages": [{{"role": "user", "content": "What is {n} and {n}?"}}, '
    '{{"role": "assistant", "content": "{m}"}}]}}\n'
)


def measure(lines: int = 1_000_000) -> Load:
    """Upload so many lines for training, and let a worker look at them."""
    content = "".join(_LINE.format(n=n, m=2 * n) for n in range(lines)).encode()
    with new_home() as home, serving(home, workers=1) as server:
        caller = Caller(server.url)
        with MemoryWatch(server) as memory, pulse(server.url) as alive:
            began = time.monotonic()
            file = upload(caller, content)
            arriving_seconds = time.monotonic() - began
        began = time.monotonic()
        job = create_job(caller, file)
        # The look of the job is a process of the worker's; the server itself must not notice.
        with pulse(server.url) as beside:
            while caller.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] == "validating_files":
                time.sleep(0.2)
        looking_seconds = time.monotonic() - began
        caller.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        caller.close()
    work = f"{lines:,} lines, {len(content) / 1e6:.0f} MB: uploaded, then looked at by the job's worker"
    return Load(
        "L05",
        work,
        [
            at_least("lines that arrive", lines / arriving_seconds, 20_000, "lines/s"),
            at_least("lines that the job looks at", lines / looking_seconds, 20_000, "lines/s"),
            at_most("more memory of server and check", memory.grown_bytes / 1e6, 300, "MB"),
            milliseconds("p99 of `/healthz` meanwhile", percentile([*alive.log, *beside.log], 0.99), 100),
        ],
    )
