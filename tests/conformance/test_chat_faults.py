"""B18, F29, F30: requests that ask for too much, callers who leave, callers who read slowly.

On SQLite alone: none of it touches the record. The catalogue's second for free places (F29) is for a machine with
nothing else to do; here it counts that most of the work was never done.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from server_process import running_server
from tiny_models import LONG_ANSWER_TOKENS, save_slow_model, save_tiny_model

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CALLERS = 100
#: More than is written until the server has heard that all left, and far less than they asked for.
IN_VAIN_TOKENS = CALLERS * LONG_ANSWER_TOKENS / 4
FOREVER = {"model": "slow", "temperature": 0, "max_tokens": LONG_ANSWER_TOKENS, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One model at a time: a tiny one, and one that is slow enough to leave it in the middle."""
    folder = tmp_path_factory.mktemp("faults")
    slow = save_slow_model("smollm2", folder / "slow")
    tiny = save_tiny_model("smollm2", folder / "tiny")
    settings = {"models": [str(slow), str(tiny)], "dtype": "float32", "max_loaded_models": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(folder / "log", folder / "home", max_batch=CALLERS, max_waiting=0, **settings) as running:
            yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHAT, '"n": 1000000000', "n"),
        (TEXT, '"n": 1000000000', "n"),
        (TEXT, '"best_of": 1000000000', "best_of"),
        (CHAT, '"n": 128', "n"),
        (CHAT, '"max_tokens": -1', "max_tokens"),
        (CHAT, '"max_completion_tokens": -1', "max_completion_tokens"),
        (TEXT, '"max_tokens": -1', "max_tokens"),
        (CHAT, '"temperature": NaN', None),
        (TEXT, '"temperature": NaN', None),
        (CHAT, '"temperature": 1e400', None),
        (CHAT, '"logprobs": true, "top_logprobs": 1000000', "top_logprobs"),
        (TEXT, '"logprobs": 1000000', "logprobs"),
        (CHAT, '"messages": []', "messages"),
        (CHAT, '"messages": null', "messages"),
        (TEXT, '"prompt": []', "prompt"),
        (CHAT, '"messages": [{"role": "user", "content": "%s"}]' % ("word " * 2_000_000), "messages"),
        (TEXT, '"prompt": "%s"' % ("word " * 2_000_000), "prompt"),
    ],
)
def test_b18_too_much_is_refused(server, path, change, param):
    asked = f'"messages": {json.dumps(HELLO)}' if path == CHAT else '"prompt": "Hello"'
    rest = "" if "messages" in change or "prompt" in change else f", {asked}"
    body = f'{{"model": "tiny", {change}{rest}}}'
    reply = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), reply.text
    assert reply.headers["x-should-retry"] == "false" and len(reply.text) < 1000


def connect(server, path, body):
    """Send a request by hand, and return its connection, unread."""
    place = urlsplit(server.url)
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(120)
    line.connect((place.hostname, place.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return line


def wait_until_free(client):
    """Ask for all places at once until they are given."""
    began = time.monotonic()
    while True:
        try:
            client.chat.completions.create(model="slow", messages=HELLO, n=CALLERS, max_tokens=1)
            return
        except openai.RateLimitError:
            assert time.monotonic() - began < 120
            time.sleep(0.05)


def test_f29_callers_who_leave_free_their_places(server, client):
    wait_until_free(client)
    written = server.answer_tokens()
    lines = []
    for number in range(CALLERS):
        path, asked = (CHAT, {"messages": HELLO}) if number % 4 < 2 else (TEXT, {"prompt": "Hello"})
        lines.append(connect(server, path, {**FOREVER, **asked, "stream": number % 2 == 0}))
    for line in lines[::2]:
        while b'"content":"' not in (read := line.recv(4096)) and b'"text":"' not in read:
            pass
    server.wait_for_answers(CALLERS)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="slow", messages=HELLO)
    for line in lines:
        line.close()
    wait_until_free(client)
    assert server.answer_tokens() - written < IN_VAIN_TOKENS


def test_f29_callers_who_leave_before_their_model_is_loaded(server, client):
    """What they waited for goes on to the next one; nobody answers them."""
    client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
    written = server.answer_tokens()
    lines = [connect(server, CHAT, {**FOREVER, "messages": HELLO}) for _ in range(CALLERS)]
    for line in lines:
        line.close()
    wait_until_free(client)
    assert server.answer_tokens() - written < IN_VAIN_TOKENS


def resident_bytes(server):
    """Return how much memory the server has."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_f30_a_slow_reader_is_nobody_elses_business(server, client):
    wait_until_free(client)
    before = resident_bytes(server)
    body = {**FOREVER, "messages": HELLO, "n": 5, "stream": True, "logprobs": True, "top_logprobs": 20}
    lines = [connect(server, CHAT, {**body, "max_tokens": 400}) for _ in range(4)]
    is_over = threading.Event()

    def read_slowly(line):
        while not is_over.wait(0.1):
            assert line.recv(1)

    readers = [threading.Thread(target=read_slowly, args=(line,)) for line in lines]
    for reader in readers:
        reader.start()
    try:
        # Others are answered meanwhile, and once all is computed, their places and the model's room are free, although
        # hardly anything was read: no second model would fit beside one that somebody still uses.
        for _ in range(5):
            client.chat.completions.create(model="slow", messages=HELLO, max_tokens=2)
        wait_until_free(client)
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
        assert all(reader.is_alive() for reader in readers)
        assert resident_bytes(server) - before < 200 * 2**20
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    # And none of it is lost: who reads on gets all of it.
    whole = b""
    while not whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        piece = lines[0].recv(1 << 16)
        assert piece
        whole = whole[-100:] + piece
    for line in lines:
        line.close()
