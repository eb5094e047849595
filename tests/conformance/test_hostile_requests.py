"""A24: slow and huge headers, many ranges, long preambles, many parts: refused, and nobody else waits meanwhile."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from server_process import running_server

#: What others may wait for the event loop.
LAG_SECONDS = 0.1
#: Another process may have the CPU at any moment, so the best of many tries counts: as many as fit into this time.
TRY_SECONDS = 120
HEADER_SECONDS = 2
SECRET = "the-servers-own-key"
KEY = {"authorization": f"Bearer {SECRET}"}

BODY_SECONDS = 3
REST_SECONDS = 2
REST_BYTES = 32 << 20

#: As `tunesmith serve` runs it, but for the patience with headers and bodies, so that the tests needn't wait long.
PROGRAM = f"""
import tunesmith.rest.connection as connection
import tunesmith.rest.guard as guard
connection.HEADER_SECONDS = {HEADER_SECONDS}
connection.REST_SECONDS = {REST_SECONDS}
connection.REST_BYTES = {REST_BYTES}
guard._BODY_SECONDS = {BODY_SECONDS}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    settings = {"api_keys": [SECRET], "max_file_bytes": 64 << 20, "max_body_bytes": 1 << 20}
    with running_server(folder, folder / "home", prelude=PROGRAM, **settings) as running:
        yield running


def connect(server):
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def reply_of(connection):
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    content = reply.read()
    return reply, json.loads(content)["error"] if reply.status >= 400 else content


#: Asks until its input ends; a process of its own, for the attacker's work would keep a thread from asking.
WATCHER = """
import http.client, json, sys, threading, time
is_over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
connection, waits = http.client.HTTPConnection(sys.argv[1], timeout=60), []
while not is_over.is_set():
    began = time.perf_counter()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    waits.append(time.perf_counter() - began)
    if len(waits) == 1:
        print("ready", flush=True)
    time.sleep(0.005)
print(json.dumps(waits[1:]))
"""


@contextmanager
def watched(server):
    """Ask, as somebody else would, how long the server takes to answer; the list holds the seconds at the end."""
    waits = []
    command = [sys.executable, "-S", "-c", WATCHER, urlsplit(server.url).netloc]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout.readline() == "ready\n"
        try:
            yield waits
        finally:
            watcher.stdin.close()
            waits += json.loads(watcher.stdout.read())


def without_lag(server, attack):
    """Attack until nobody else noticed it."""
    lags, give_up = [], time.monotonic() + TRY_SECONDS
    while not lags or time.monotonic() < give_up:
        with watched(server) as waits:
            attack()
        lags.append(max(waits, default=0.0))
        if lags[-1] < LAG_SECONDS:
            return
    raise AssertionError(f"others waited {lags}")


def is_refused(status, error, expected):
    assert status == expected, error
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_a24_slow_headers_are_given_up(server):
    drops = [connect(server) for _ in range(50)]
    began = time.monotonic()
    for connection in drops:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    silent = connect(server)

    def drip():
        # Each connection says a little now and then, for longer than the server's patience.
        while time.monotonic() - began < HEADER_SECONDS + 1:
            for connection in drops:
                try:
                    connection.sendall(b"x-more: yes\r\n")
                except OSError:
                    return
            time.sleep(0.2)

    with watched(server) as waits:
        drip()
    # If they had the event loop, everybody else would wait, not only those who meet another process.
    assert sorted(waits)[len(waits) // 10] < LAG_SECONDS
    for connection in drops:
        reply, error = reply_of(connection)
        is_refused(reply.status, error, 408)
        assert reply.getheader("x-should-retry") == "false" and connection.recv(1) == b""
    assert silent.recv(1) == b""  # who asks nothing is told nothing
    assert time.monotonic() - began < HEADER_SECONDS + 20


def test_a24_connections_that_are_kept_are_not_given_up(server):
    """Patience counts from a request's first byte on; between requests a connection may rest."""
    connection = connect(server)
    request = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    for _ in range(2):
        connection.sendall(request[:20])
        time.sleep(0.1)
        connection.sendall(request[20:])
        assert reply_of(connection)[0].status == 200
        time.sleep(HEADER_SECONDS + 0.5)
    connection.sendall(request)
    assert reply_of(connection)[0].status == 200


def test_a24_slow_bodies_are_given_up(server):
    head = f"host: 127.0.0.1\r\ncontent-type: application/json\r\nauthorization: Bearer {SECRET}\r\n"
    connection = connect(server)
    connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: 100\r\n\r\n".encode())
    began = time.monotonic()
    while time.monotonic() - began < BODY_SECONDS - 0.5:
        connection.sendall(b" ")
        time.sleep(0.3)
    reply, error = reply_of(connection)
    is_refused(reply.status, error, 408)
    assert time.monotonic() - began < BODY_SECONDS + 20


@pytest.mark.parametrize(
    "header",
    [b"x-huge: " + b"x" * 1_000_000, b"\r\n".join(b"x-%d: y" % i for i in range(20_000)), b"x" * 200_000],
    ids=["one", "many", "no end"],
)
def test_a24_huge_headers(server, header):
    def attack():
        connection = connect(server)
        with suppress(OSError):  # refused before all was said
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n" + header + b"\r\n\r\n")
        try:
            reply, error = reply_of(connection)
        except ConnectionError:
            return  # the refusal was lost with what wasn't read
        is_refused(reply.status, error, 400)

    without_lag(server, attack)


def test_a24_what_is_no_http_is_refused_as_json(server):
    for said in (b"\x16\x03\x01\x02\x00\x01\x00\xff\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nx y: z\r\n\r\n"):
        connection = connect(server)
        connection.sendall(said)
        reply, error = reply_of(connection)
        is_refused(reply.status, error, 400)
        assert error["code"] == "invalid_http" and connection.recv(1) == b""


def test_a24_many_ranges(server):
    rows = (json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]}) + "\n").encode() * 2000
    with httpx.Client(base_url=server.url, headers=KEY, timeout=60) as client:
        made = client.post("/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "evals"}).json()
        path = f"/v1/files/{made['id']}/content"

        def attack():
            for ranges in ("0-0," * 3_000 + "1-1", ",".join(f"{i}-" for i in range(2_500))):
                reply = client.get(path, headers={"range": f"bytes={ranges}"})
                # Ranges are left out of account; no file is sent many times over.
                assert reply.status_code == 200 and reply.content == rows

        without_lag(server, attack)


def form(parts):
    return b"".join(b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n' % name for name in parts)


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n{}\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"preamble " * (50 * 2**20 // 9) + b"\r\n" + FILE, 400),
        (b"\r\n" * (25 * 2**20) + FILE, 400),
        (form(b"part%d" % i for i in range(10_000)) + FILE, 400),
        (form(b"" for _ in range(10_000)) + FILE, 400),
        (form([b"x" * 2**20]) + FILE, 400),
        (b"--b\r\n" + b"x-header: y\r\n" * 100_000 + b"\r\n" + FILE, 400),
        (b"x" * 50 * 2**20, 400),
    ],
    ids=["preamble", "empty lines", "parts", "nameless parts", "a long name", "headers of a part", "no form"],
)
def test_a24_forms_that_never_come_to_the_point(server, body, status):
    headers = {**KEY, "content-type": "multipart/form-data; boundary=b"}

    def attack():
        reply = httpx.post(f"{server.url}/v1/files", content=body, headers=headers, timeout=120)
        is_refused(reply.status_code, reply.json()["error"], status)

    without_lag(server, attack)


def test_a24_bodies_in_tiny_chunks(server):
    """A caller's byte is an event for the server; others get their turn all the same, and the body is read right."""
    body = json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x" * 8_000}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer {SECRET}\r\ntransfer-encoding: chunked\r\n\r\n"
    request = head.encode() + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def attack():
        connection = connect(server)
        for _ in range(2):  # and once more on the same connection
            connection.sendall(request)
            reply, error = reply_of(connection)
            is_refused(reply.status, error, 404)
            assert error["code"] == "model_not_found"

    without_lag(server, attack)


#: Requests that are refused at their headers, each with a body that goes on.
REFUSED_EARLY = {
    "unknown kind": ("/v1/chat/completions", "content-type: text/plain\r\ntransfer-encoding: chunked\r\n", 415),
    "too large": ("/v1/chat/completions", f"content-type: application/json\r\ncontent-length: {1 << 40}\r\n", 413),
    "no key": ("/v1/files", "content-type: text/plain\r\ntransfer-encoding: chunked\r\n", 401),
}


@pytest.mark.parametrize("case", REFUSED_EARLY)
@pytest.mark.parametrize("piece_bytes", [1, 2**20], ids=["slow", "fast"])
def test_a24_the_rest_of_a_refused_body_is_not_heard_for_ever(server, case, piece_bytes):
    path, kind, status = REFUSED_EARLY[case]
    key = "" if status == 401 else f"authorization: Bearer {SECRET}\r\n"
    connection = connect(server)
    connection.sendall(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{key}{kind}\r\n".encode())
    piece = b"x" * piece_bytes if status == 413 else b"%x\r\n%s\r\n" % (piece_bytes, b"x" * piece_bytes)
    connection.sendall(piece)
    reply, error = reply_of(connection)
    assert reply.status == status and error["code"]
    began, sent_bytes = time.monotonic(), 0
    with pytest.raises(ConnectionError):
        while time.monotonic() - began < REST_SECONDS + 20:
            connection.sendall(piece)
            sent_bytes += len(piece)
            if piece_bytes == 1:
                time.sleep(0.05)
            assert sent_bytes < REST_BYTES + 2**25  # beside what the system keeps on the way
    if piece_bytes == 1:
        assert sent_bytes < 2**20
    else:  # unless the time is over before, on a busy machine
        assert sent_bytes > REST_BYTES / 2 or time.monotonic() - began >= REST_SECONDS


def test_a24_a_caller_who_falls_silent_in_a_refused_body_is_let_go(server):
    connection = connect(server)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {SECRET}\r\n"
    connection.sendall(f"{head}content-type: text/plain\r\ncontent-length: 1000\r\n\r\nx".encode())
    assert reply_of(connection)[0].status == 415
    connection.sendall(b"x")
    began = time.monotonic()
    assert connection.recv(1) == b""
    assert time.monotonic() - began < REST_SECONDS + 20


def test_a24_a_connection_goes_on_after_a_refused_body(server):
    connection = connect(server)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {SECRET}\r\n"
    request = f"{head}content-type: text/plain\r\ncontent-length: 1000\r\n\r\nx".encode()
    connection.sendall(request)
    for _ in range(8):
        assert reply_of(connection)[0].status == 415
        connection.sendall(b"x" * 999 + request)  # the next request right behind the rest of this one
        time.sleep(REST_SECONDS * 0.3)
