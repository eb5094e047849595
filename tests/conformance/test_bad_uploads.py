"""Rows of the reliability catalogue for uploads, by their ids: bad content, bad forms, attacks."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import time
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest

from conformance.conftest import MAX_FILE_BYTES
from conformance.test_files import ROW, TEN_LINES, begin, form, is_refused, post_form, upload

LINE = json.dumps(ROW).encode() + b"\n"


def refusal(client, content):
    with pytest.raises(openai.BadRequestError) as refused:
        upload(client, content)
    assert refused.value.param == "file" and "Traceback" not in refused.value.message
    return refused.value


@pytest.fixture(autouse=True)
def nothing_is_left(platform_server):
    """Nothing half-written remains, and no process that checks."""
    yield
    give_up = time.monotonic() + 60
    while True:
        parts = list((platform_server.home / "files").glob(".*.part"))
        children = psutil.Process(platform_server.server.process.pid).children(recursive=True)
        if not parts and not children:
            return
        assert time.monotonic() < give_up, (parts, children)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + TEN_LINES, TEN_LINES.replace(b"\n", b"\r\n"), TEN_LINES[:-1], b"\n \n" + TEN_LINES + b"\n\n"],
    ids=["mark", "crlf", "no-last-newline", "blank-lines"],
)
def test_B01_harmless_forms(client, content):
    made = upload(client, content)
    assert client.files.content(made.id).content == content
    # Later line numbers are right.
    line = (content if content.endswith(b"\n") else content + b"\n").count(b"\n") + 1
    broken = content if content.endswith(b"\n") else content + b"\n"
    assert f"Line {line} " in refusal(client, broken + b"[]").message


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (TEN_LINES.decode().encode("utf-16"), "Line 1 .*byte 1"),
        (TEN_LINES.decode().encode("utf-16-le"), "Line 1 .*Byte 2"),
        (LINE + '{"a": "café"}\n'.encode("latin-1"), "Line 2 .*Byte 11"),
        (LINE * 3 + b'{"a": "\xff"}', "Line 4 .*Byte 8"),
        (LINE + b'{"a": "\0"}\n', "Line 2 .*Byte 8"),
        (LINE + b'{"a": "\\ud800"}\n', "Line 2 .*Byte 8"),
    ],
    ids=["utf-16-mark", "utf-16", "latin-1", "bad-byte", "nul", "surrogate"],
)
def test_B02_encodings(client, content, place):
    error = refusal(client, content)
    assert error.code == "invalid_encoding"
    assert re.search(place, error.message), error.message


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (LINE * 2 + LINE[:30], "invalid_json", 3),
        (json.dumps([ROW] * 10).encode(), "not_an_object", 1),
        (json.dumps([ROW] * 10, indent=1).encode(), "invalid_json", 1),
        (LINE + b'"text"\n', "not_an_object", 2),
        (LINE + b"null\n", "not_an_object", 2),
    ],
)
def test_B03_not_lines_of_objects(client, content, code, line):
    error = refusal(client, content)
    assert error.code == code and f"Line {line} " in error.message


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"key": 1, "key": 2}', "duplicate_key"),
        (b'{"key": NaN}', "invalid_number"),
        (b'{"key": -Infinity}', "invalid_number"),
        (b'{"key": 1e999}', "invalid_number"),
        (b'{"key": ' + b"7" * 5000 + b"}", "invalid_number"),
    ],
)
def test_B04_json_that_is_not_strict(client, line, code):
    error = refusal(client, LINE + line + b"\n")
    assert error.code == code and "Line 2 " in error.message and "key" in error.message


def test_B05_deep_nesting(client):
    began = time.monotonic()
    error = refusal(client, LINE + b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert error.code == "too_deep" and "Line 2 " in error.message
    assert time.monotonic() - began < 30  # a second on a machine that does nothing else


def test_B06_a_very_long_line_is_refused_early_and_in_little_memory(platform_server):
    server = psutil.Process(platform_server.server.process.pid)
    before_bytes, most_bytes, sent_bytes = server.memory_info().rss, 0, 0
    whole, kind = form(("purpose", b"fine-tune"), ("file", b"MARK", "birds.jsonl"))

    def body():
        nonlocal sent_bytes, most_bytes
        yield whole[: whole.index(b"MARK")]
        while sent_bytes < MAX_FILE_BYTES - 2**16:
            yield b"x" * 2**16
            sent_bytes += 2**16
            most_bytes = max(most_bytes, server.memory_info().rss)
        yield whole[whole.index(b"MARK") + 4 :]

    reply = httpx.post(f"{platform_server.url}/files", content=body(), headers={"content-type": kind}, timeout=60)
    assert is_refused(reply)["code"] == "line_too_long"
    assert most_bytes - before_bytes < 100 * 2**20


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_B07_no_rows(client, content):
    assert refusal(client, content).code == "too_few_examples"


def test_B07_few_rows_are_left_to_the_job(client):
    assert upload(client, LINE * 9).status == "processed"


def test_first_twenty_problems_are_listed(client):
    message = refusal(client, LINE + b"[]\n" * 50).message
    assert "Line 2 " in message and "Line 21:" in message and "Line 22" not in message


def test_long_files_are_checked_too(client):
    many = LINE * (2 * 2**20 // len(LINE))
    assert upload(client, many).bytes == len(many)
    assert f"Line {many.count(LINE[-3:]) + 1} " in refusal(client, many + b"[]\n").message


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("..\\..\\evil.jsonl", "evil.jsonl"),
        ("/absolute/name.jsonl", "name.jsonl"),
        ("a" * 300 + ".jsonl", "a" * 249 + ".jsonl"),
        ("tab\there.jsonl", "tabhere.jsonl"),
        ("right\u202elnosj.jsonl", "rightlnosj.jsonl"),
        ("<script>alert(1)<.jsonl", "<script>alert(1)<.jsonl"),
        ("$(touch canary);--flag.jsonl", "$(touch canary);--flag.jsonl"),
        ("ünï 鳥.jsonl", "ünï 鳥.jsonl"),
    ],
)
def test_B11_A05_A06_A21_names_are_cleaned_and_never_paths(client, platform_server, given, shown):
    reply = post_form(platform_server, ("purpose", b"fine-tune"), ("file", TEN_LINES, given))
    assert reply.status_code == 200 and reply.json()["filename"] == shown
    sent = httpx.get(f"{platform_server.url}/files/{reply.json()['id']}/content")
    assert sent.content == TEN_LINES
    assert sent.headers["content-disposition"].startswith("attachment; filename=")
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert sent.headers["content-security-policy"] == "default-src 'none'; sandbox"
    stored = [path.name for path in platform_server.home.rglob("*") if path.is_file()]
    assert not [name for name in stored if "evil" in name or "passwd" in name or "canary" in name]


@pytest.mark.parametrize("name", ["", "..", "../", "/", "\u202e", " . "])
def test_B11_names_that_are_none(platform_server, name):
    reply = post_form(platform_server, ("purpose", b"user_data"), ("file", b"x", name))
    assert is_refused(reply)["code"] == "invalid_filename"


def test_B11_a_name_that_is_not_utf8(platform_server):
    body, kind = form(("purpose", b"user_data"), ("file", b"x", "NAME.bin"))
    reply = httpx.post(
        f"{platform_server.url}/files", content=body.replace(b"NAME", b"\xff\xfe"), headers={"content-type": kind}
    )
    assert reply.status_code == 200 and reply.json()["filename"] == "\ufffd\ufffd.bin"


PURPOSE, FILE = ("purpose", b"fine-tune"), ("file", TEN_LINES, "birds.jsonl")


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([FILE], "purpose"),
        ([("purpose", b"fun"), FILE], "purpose"),
        ([("purpose", b"fine-tune-results"), FILE], "purpose"),
        ([PURPOSE, PURPOSE, FILE], "purpose"),
        ([PURPOSE], "file"),
        ([PURPOSE, ("file", b"text")], "file"),
        ([PURPOSE, FILE, FILE], "file"),
        ([PURPOSE, FILE, ("other", b"x", "other.jsonl")], "other"),
        ([PURPOSE, FILE, ("colour", b"red")], "colour"),
        ([PURPOSE, FILE, ("expires_after[seconds]", b"9" * 5000), ("expires_after[anchor]", b"created_at")],
         "expires_after[seconds]"),
        ([PURPOSE, FILE, ("expires_after[seconds]", b"4000")], "expires_after[anchor]"),
        ([PURPOSE, ("purposes", b"x" * 2**17), FILE], "purposes"),
        ([*((f"f{number}", b"") for number in range(1001)), PURPOSE, FILE], None),
        ([], "file"),
    ],
)  # fmt: skip
def test_B12_forms_that_are_none(platform_server, parts, param):
    assert is_refused(post_form(platform_server, *parts))["param"] == param


def test_B12_a_form_that_is_garbage(platform_server):
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for body in (b"", b"garbage", b"--b\r\n", b"x" * 5 * 2**20 + b"--b--\r\n"):
        is_refused(httpx.post(f"{platform_server.url}/files", content=body, headers=kind))
    for kind in ("multipart/form-data", "application/json", "text/plain; boundary=b"):
        is_refused(httpx.post(f"{platform_server.url}/files", content=b"{}", headers={"content-type": kind}), 415)


@pytest.mark.parametrize("chunked", [False, True])
def test_B13_too_large(platform_server, chunked):
    content = b"x" * (MAX_FILE_BYTES + 1)
    body, kind = form(("purpose", b"user_data"), ("file", content, "large.bin"))
    sent = (body[i : i + 2**16] for i in range(0, len(body), 2**16)) if chunked else body
    reply = httpx.post(f"{platform_server.url}/files", content=sent, headers={"content-type": kind}, timeout=60)
    assert is_refused(reply, 413)["code"] == "file_too_large"
    fits = ("file", content[:-1], "large.bin")
    assert post_form(platform_server, ("purpose", b"user_data"), fits).json()["bytes"] == MAX_FILE_BYTES


def say(server, head, body=b""):
    """Send a request by hand; return the first bytes of the answer."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"POST /v1/files HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n".encode() + body)
        return connection.recv(65536)


def test_B13_a_declared_length_is_refused_before_anything_is_read(platform_server):
    kind = "Content-Type: multipart/form-data; boundary=b\r\n"
    length = f"Content-Length: {MAX_FILE_BYTES * 10}\r\n"
    assert b" 413 " in say(platform_server, kind + length + "Expect: 100-continue\r\n")
    assert b" 413 " in say(platform_server, kind + length)
    assert b" 400 " in say(platform_server, kind + "Content-Length: -5\r\n")


def test_B13_expect_continue_is_answered(platform_server):
    body, kind = form(("purpose", b"user_data"), ("file", b"x", "a.bin"))
    head = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
    address = urlsplit(platform_server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"POST /v1/files HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_B13_a_body_in_gzip(platform_server):
    body, kind = form(PURPOSE, FILE)
    headers = {"content-type": kind, "content-encoding": "gzip"}
    reply = httpx.post(f"{platform_server.url}/files", content=gzip.compress(body), headers=headers)
    assert is_refused(reply, 415)["code"] == "unsupported_encoding"


def test_B14_an_upload_that_is_cut(platform_server, client):
    before = [one.id for one in client.files.list()]
    body, kind = form(PURPOSE, ("file", LINE * 30_000, "birds.jsonl"))
    seed = random.randrange(2**32)
    print("seed", seed)
    address = urlsplit(platform_server.url)
    for cut in [10, 400, *(random.Random(seed).randrange(len(body)) for _ in range(4)), len(body) - 1]:
        head = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(f"POST /v1/files HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n".encode() + body[:cut])
    assert [one.id for one in client.files.list()] == before


def test_B15_uploads(client, platform_server):
    begun = begin(client)
    middle = len(TEN_LINES) // 3
    first = client.uploads.parts.create(begun.id, data=TEN_LINES[:middle])
    second = client.uploads.parts.create(begun.id, data=TEN_LINES[middle:])
    for ids in ([first.id], [first.id, "part_none"], [first.id, first.id], [first.id, second.id, second.id], []):
        with pytest.raises(openai.BadRequestError):
            client.uploads.complete(begun.id, part_ids=ids)
    with pytest.raises(openai.BadRequestError, match="JSONL"):
        client.uploads.complete(begun.id, part_ids=[second.id, first.id])
    client.uploads.complete(begun.id, part_ids=[first.id, second.id])
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.uploads.complete(begun.id, part_ids=[first.id, second.id])
    with pytest.raises(openai.NotFoundError):
        client.uploads.complete("upload_none", part_ids=[first.id])
    another = begin(client)
    large = post_form(platform_server, ("data", b"x" * (64 * 2**20 + 1), "x"), path=f"/uploads/{another.id}/parts")
    is_refused(large, 413)
    for size in (0, 8 * 2**30 + 1):
        with pytest.raises(openai.BadRequestError):
            begin(client, bytes=size)
