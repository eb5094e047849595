"""L02: clients that mostly read and sometimes write; then as many durable jobs as go."""

from __future__ import annotations

import uuid

from load.bars import Load, at_least, milliseconds, none_of
from load.crowd import Caller, crowd, faults, per_second, percentile
from load.server import new_home, serving

BASE = "smollm2-135m"
ROWS = b"".join(
    b'{"messages": [{"role": "user", "content": "say %d"}, {"role": "assistant", "content": "%d"}]}\n' % (n, n)
    for n in range(20)
)
_WRITERS = 16
_WRITE_SECONDS = 15.0


def upload(caller: Caller, content: bytes = ROWS, name: str = "rows.jsonl", purpose: str = "fine-tune") -> str:
    """Upload a file and return its id."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    reply = caller.ask("POST", "/v1/files", body, kind, kind="upload")
    if reply.status != 200:
        raise SystemExit(reply.body.decode())
    return str(reply.json()["id"])


def create_job(caller: Caller, training_file: str, model: str = BASE, **more: object) -> str:
    """Create a job and return its id."""
    asked = {"model": model, "training_file": training_file, **more}
    reply = caller.post("/v1/fine_tuning/jobs", asked, "create job")
    if reply.status != 200:
        raise SystemExit(reply.body.decode())
    return str(reply.json()["id"])


def measure(clients: int = 64, seconds: float = 300.0) -> Load:
    """Let clients read nine times for each write, then let some create jobs and nothing else."""
    with new_home() as home, serving(home) as server:
        first = Caller(server.url)
        file = upload(first)
        known = [create_job(first, file) for _ in range(200)]
        first.close()

        def visit(one: Caller) -> None:
            job = one.random.choice(known)
            match one.random.randrange(20):
                case 0:
                    create_job(one, file)
                case 1:
                    one.post(f"/v1/fine_tuning/jobs/{create_job(one, file)}/cancel", kind="cancel")
                case number if number < 8:
                    one.get(f"/v1/fine_tuning/jobs/{job}", "retrieve")
                case number if number < 12:
                    one.get(f"/v1/fine_tuning/jobs/{job}/events?limit=20", "events")
                case number if number < 16:
                    one.get("/v1/fine_tuning/jobs?limit=20", "jobs")
                case _:
                    one.get("/v1/files?limit=20", "files")

        log = crowd(server.url, clients, seconds, visit)
        created = crowd(server.url, _WRITERS, _WRITE_SECONDS, lambda one: create_job(one, file))
    work = (
        f"{clients} clients for {seconds:.0f} s, {len(log):,} requests of which one in ten writes; then {_WRITERS} "
        f"clients that create jobs for {_WRITE_SECONDS:.0f} s"
    )
    return Load(
        "L02",
        work,
        [
            none_of("5xx and lost", faults([*log, *created])),
            milliseconds("p99", percentile(log, 0.99), 500),
            at_least("durable jobs", per_second(created), 50, "jobs/s"),
        ],
    )
