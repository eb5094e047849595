"""L10: ten times as many chats as the server takes; L11: the server beside training on all cores."""

from __future__ import annotations

import threading
import time

from load.bars import Load, at_least, at_most, milliseconds, none_of
from load.crowd import Asked, Caller, crowd, faults, percentile, pulse
from load.mixture import BASE, create_job, upload
from load.server import new_home, serving
from machine import usable_cores
from tunesmith.models.resolve import resolve_base

#: What is computed side by side, and what may wait.
_BATCH, _WAITING = 4, 4
#: Keys and values of what was answered are kept up to a bound, by default gigabytes, which a flood of different prompts
#: fills. With little for them, what else a flood leaves behind is seen.
_CACHE_BYTES = 64 << 20
_CALM_CLIENTS = 2
_OVERLOAD = 10
_TOKENS = 12
_CALM_SECONDS = 15.0
_RECOVERY_SECONDS = 10.0
#: A refused client that doesn't wait as long as it was told to.
_IMPATIENCE_SECONDS = 0.2


def measure(seconds: float = 120.0) -> Load:
    """Answer a few clients, then ten times as many as there is room for, then a few again."""
    with new_home() as home:
        resolve_base(BASE, home)
        settings = {"max_batch": _BATCH, "max_waiting": _WAITING, "models": [BASE], "cache_bytes": _CACHE_BYTES}
        with serving(home, threads=usable_cores(), **settings) as server:
            crowd(server.url, _CALM_CLIENTS, _CALM_SECONDS / 3, _chat)
            before = crowd(server.url, _CALM_CLIENTS, _CALM_SECONDS, _chat)
            memory_before = server.memory_bytes()
            with pulse(server.url) as alive:
                many = crowd(server.url, _OVERLOAD * (_BATCH + _WAITING), seconds, _chat)
            time.sleep(_RECOVERY_SECONDS)
            memory_after = server.memory_bytes()
            after = crowd(server.url, _CALM_CLIENTS, _CALM_SECONDS, _chat)
    shed = [one for one in many if one.status == 429]
    answered = [one for one in many if one.status == 200]
    calm, again = percentile(before, 0.99), percentile(after, 0.99)
    work = (
        f"{_CALM_CLIENTS} chats at once, then {_OVERLOAD * (_BATCH + _WAITING)} for {seconds:.0f} s where "
        f"{_BATCH + _WAITING} have room: {len(answered):,} answered, {len(shed):,} refused with 429; "
        f"{_CACHE_BYTES >> 20} MiB for keys and values"
    )
    return Load(
        "L10",
        work,
        [
            none_of("5xx and lost", faults(many)),
            at_least("refused with 429", len(shed), 1, "requests"),
            milliseconds("p99 of a refusal", percentile(shed, 0.99), 1000),
            milliseconds("p99 of `/healthz` meanwhile", percentile(alive.log, 0.99), 500),
            at_most("p99 of an answer 10 s later, to before", again / calm, 1.5, "times"),
            at_most("more memory 10 s later", max(0.0, (memory_after - memory_before) / 1e6), 100, "MB"),
        ],
    )


def measure_beside_training(seconds: float = 60.0) -> Load:
    """Ask the server while its worker trains on all cores."""
    rows = b"".join(
        b'{"messages": [{"role": "user", "content": "%s %d"}, {"role": "assistant", "content": "%s"}]}\n'
        % (b"tell me about " * 20, number, b"there is much to tell " * 20)
        for number in range(2_000)
    )
    with new_home() as home:
        resolve_base(BASE, home)
        with serving(home, threads=usable_cores(), workers=1, models=[BASE]) as server:
            caller = Caller(server.url)
            job = create_job(caller, upload(caller, rows), hyperparameters={"n_epochs": 3, "batch_size": 8})
            _wait_step(caller, job)
            with pulse(server.url) as alive:
                lists = crowd(server.url, 2, seconds, _list)
            steps = _steps(caller, job)
            caller.post(f"/v1/fine_tuning/jobs/{job}/cancel")
            caller.close()
    return Load(
        "L11",
        f"a job trains {BASE} on all {usable_cores()} cores for {seconds:.0f} s, {steps} steps",
        [
            milliseconds("p99 of `/healthz`", percentile(alive.log, 0.99), 500),
            milliseconds("p99 of lists, two clients", percentile(lists, 0.99), 1000),
            none_of("5xx and lost", faults([*alive.log, *lists])),
        ],
    )


def _chat(caller: Caller) -> Asked:
    messages = [{"role": "user", "content": f"Tell me about {caller.random.randrange(10**6)}."}]
    reply = caller.post("/v1/chat/completions", {"model": BASE, "messages": messages, "max_tokens": _TOKENS}, "chat")
    if reply.status == 429:
        threading.Event().wait(_IMPATIENCE_SECONDS)
    return caller.log[-1]


def _list(caller: Caller) -> None:
    caller.get("/v1/fine_tuning/jobs?limit=20")
    time.sleep(0.02)


def _wait_step(caller: Caller, job: str) -> None:
    while not _steps(caller, job):
        state = caller.get(f"/v1/fine_tuning/jobs/{job}").json()
        if state["status"] in ("failed", "cancelled", "succeeded"):
            raise SystemExit(f"the job is over before it was looked at: {state['error']}")
        time.sleep(0.5)


def _steps(caller: Caller, job: str) -> int:
    page = caller.get(f"/v1/fine_tuning/jobs/{job}/events?limit=100").json()
    return max((event["data"]["step"] for event in page["data"] if event["type"] == "metrics"), default=0)
