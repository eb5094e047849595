"""Items 1 to 14, 69, 70 and 72 of the contract's checklist, for files and uploads."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from sqlalchemy import update

from tunesmith.record.tables import files, uploads

ROW = {"messages": [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "Wren"}]}
TEN_LINES = (json.dumps(ROW) + "\n").encode() * 10


def upload(client, content=TEN_LINES, name="birds.jsonl", purpose="fine-tune", **more):
    return client.files.create(file=(name, content), purpose=purpose, **more)


def form(*parts):
    """Return the body and the type of a form: (name, content) is a field, (name, content, filename) a file."""
    boundary = uuid.uuid4().hex.encode()
    body = b""
    for name, content, *filename in parts:
        extra = b'; filename="%s"' % filename[0].encode() if filename else b""
        body += b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
            boundary, name.encode(), extra, content,
        )  # fmt: skip
    return body + b"--%s--\r\n" % boundary, f"multipart/form-data; boundary={boundary.decode()}"


def post_form(server, *parts, path="/files", chunked=False):
    body, kind = form(*parts)
    content = (body[i : i + 1000] for i in range(0, len(body), 1000)) if chunked else body
    return httpx.post(server.url + path, content=content, headers={"content-type": kind}, timeout=60)


def is_refused(reply, status=400):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["x-should-retry"] == "false"
    return error


def test_item_01_upload_from_a_path(client, tmp_path):
    path = tmp_path / "birds.jsonl"
    path.write_bytes(TEN_LINES)
    made = client.files.create(file=path, purpose="fine-tune")
    assert made.id.startswith("file-") and made.object == "file"
    assert (made.status, made.bytes, made.purpose) == ("processed", len(TEN_LINES), "fine-tune")
    assert made.filename == "birds.jsonl" and made.expires_at is None
    assert abs(made.created_at - time.time()) < 60
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id).status == "processed"


def test_item_02_fields_before_or_after_the_file(platform_server):
    purpose, file = ("purpose", b"fine-tune"), ("file", TEN_LINES, "birds.jsonl")
    first, second = (post_form(platform_server, *parts) for parts in ([purpose, file], [file, purpose]))
    assert first.status_code == second.status_code == 200
    ignored = {"id", "created_at"}
    assert {k: v for k, v in first.json().items() if k not in ignored} == {
        k: v for k, v in second.json().items() if k not in ignored
    }
    # What is wrong is found either way.
    broken = ("file", TEN_LINES + b"[1]\n", "birds.jsonl")
    messages = [is_refused(post_form(platform_server, *parts)) for parts in ([purpose, broken], [broken, purpose])]
    assert messages[0] == messages[1]


def test_item_03_chunked_without_a_length(platform_server, client):
    reply = post_form(platform_server, ("file", TEN_LINES, "birds.jsonl"), ("purpose", b"fine-tune"), chunked=True)
    assert reply.status_code == 200 and reply.json()["bytes"] == len(TEN_LINES)
    assert client.files.content(reply.json()["id"]).content == TEN_LINES


def test_item_04_expires_after(client):
    for seconds in (3600, 2592000):
        made = upload(client, expires_after={"anchor": "created_at", "seconds": seconds})
        assert made.expires_at == made.created_at + seconds
    for seconds in (3599, 2592001):
        with pytest.raises(openai.BadRequestError) as refused:
            upload(client, expires_after={"anchor": "created_at", "seconds": seconds})
        assert refused.value.param == "expires_after[seconds]"
    with pytest.raises(openai.BadRequestError):
        upload(client, expires_after={"anchor": "now", "seconds": 4000})
    batch = upload(client, purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * 3600


def test_item_05_only_jsonl_for_fine_tuning(client):
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        upload(client, name="birds.txt")
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl.*'upload'"):
        client.files.create(file=TEN_LINES, purpose="fine-tune")
    assert upload(client, name="birds.txt", purpose="user_data").filename == "birds.txt"
    assert client.files.create(file=b"\0\1", purpose="user_data").filename == "upload"


def test_item_06_a_line_that_is_an_array(client):
    with pytest.raises(
        openai.BadRequestError, match=r"every line is a JSON dictionary\. Line 3 is not a dict"
    ) as refused:
        upload(client, json.dumps(ROW).encode() + b"\n\n[1, 2]\n")
    assert (refused.value.code, refused.value.param) == ("not_an_object", "file")


def test_item_07_lists(client):
    purpose = "evals"
    made = [upload(client, name=f"{number}.jsonl", purpose=purpose).id for number in range(5)]
    assert [one.id for one in client.files.list(purpose=purpose)] == made[::-1]
    assert [one.id for one in client.files.list(purpose=purpose, order="asc")] == made
    page = client.files.list(purpose=purpose, limit=2)
    assert len(page.data) == 2 and page.has_more
    assert [one.id for one in client.files.list(purpose=purpose, limit=2)] == made[::-1]
    assert [one.id for one in client.files.list(purpose=purpose, limit=2, order="asc")] == made
    assert list(client.files.list(purpose="nothing has this")) == []


def test_item_07_pages_hold_while_files_come_and_go(client):
    made = [upload(client, name=f"{number}.jsonl", purpose="vision").id for number in range(4)]
    page = client.files.list(purpose="vision", limit=2)
    upload(client, name="new.jsonl", purpose="vision")
    client.files.delete(made[1])
    assert [one.id for one in page.get_next_page().data] == [made[0]]


def test_item_08_content_is_byte_identical(client, platform_server):
    binary = bytes(range(256)) * 5000 + b"\r\n--boundary\r\n--"
    for content, name, purpose in ((TEN_LINES, "birds.jsonl", "fine-tune"), (binary, "a.bin", "user_data")):
        made = upload(client, content, name, purpose)
        assert client.files.content(made.id).content == content
        assert made.bytes == len(content)
    reply = httpx.get(f"{platform_server.url}/files/{made.id}/content")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"] == 'attachment; filename="a.bin"'
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_item_09_delete(client):
    made = upload(client)
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}") as refused:
            ask(made.id)
        assert (refused.value.type, refused.value.param, refused.value.code) == ("invalid_request_error", "id", None)


def test_item_10_an_expired_file_is_gone(client, platform_server):
    made = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    with platform_server.database.write() as connection:
        connection.execute(update(files).where(files.c.id == made.id).values(expires_at=int(time.time())))
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    assert made.id not in [one.id for one in client.files.list()]


def begin(client, content=TEN_LINES, **more):
    given = {"bytes": len(content), "filename": "birds.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    return client.uploads.create(**{**given, **more})


def test_item_11_parts_in_swapped_order(client):
    begun = begin(client)
    assert (begun.status, begun.object, begun.file) == ("pending", "upload", None)
    assert begun.expires_at == begun.created_at + 3600
    middle = len(TEN_LINES) // 3
    with ThreadPoolExecutor(2) as pool:
        pieces = [TEN_LINES[middle:], TEN_LINES[:middle]]
        second, first = pool.map(lambda piece: client.uploads.parts.create(begun.id, data=piece), pieces)
    assert (first.object, first.upload_id) == ("upload.part", begun.id)
    done = client.uploads.complete(begun.id, part_ids=[first.id, second.id])
    assert (done.status, done.file.object, done.file.bytes) == ("completed", "file", len(TEN_LINES))
    assert client.files.content(done.file.id).content == TEN_LINES
    assert client.files.retrieve(done.file.id) == done.file


def test_item_12_wrong_total_or_md5(client):
    begun = begin(client)
    part = client.uploads.parts.create(begun.id, data=TEN_LINES)
    short = client.uploads.parts.create(begun.id, data=TEN_LINES[:-1])
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.complete(begun.id, part_ids=[short.id])
    assert refused.value.code == "wrong_number_of_bytes"
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.complete(begun.id, part_ids=[part.id], md5="0" * 32)
    assert refused.value.code == "wrong_md5"
    md5 = hashlib.md5(TEN_LINES).hexdigest()
    assert client.uploads.complete(begun.id, part_ids=[part.id], md5=md5).status == "completed"


def test_item_13_no_part_after_the_end(client, platform_server):
    cancelled = begin(client)
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    expired = begin(client)
    part = client.uploads.parts.create(expired.id, data=TEN_LINES)
    with platform_server.database.write() as connection:
        connection.execute(update(uploads).where(uploads.c.id == expired.id).values(expires_at=int(time.time())))
    for begun, state in ((cancelled, "cancelled"), (expired, "expired")):
        asks = (
            lambda begun=begun: client.uploads.parts.create(begun.id, data=TEN_LINES),
            lambda begun=begun: client.uploads.complete(begun.id, part_ids=[part.id]),
            lambda begun=begun: client.uploads.cancel(begun.id),
        )
        for ask in asks:
            with pytest.raises(openai.BadRequestError, match=f"is {state}"):
                ask()
        assert httpx.get(f"{platform_server.url}/uploads/{begun.id}").json()["status"] == state


def test_item_14_upload_file_chunked(client):
    done = client.uploads.upload_file_chunked(
        file=TEN_LINES, filename="birds.jsonl", bytes=len(TEN_LINES), mime_type="application/jsonl",
        purpose="fine-tune", part_size=100, md5=hashlib.md5(TEN_LINES).hexdigest(),
    )  # fmt: skip
    assert client.files.content(done.file.id).content == TEN_LINES


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/files/file-none", 404),
        ("GET", "/files/file-none/content", 404),
        ("DELETE", "/files/file-none", 404),
        ("GET", "/files/file-none/more", 404),
        ("PATCH", "/files/file-none", 405),
        ("GET", "/files?limit=0", 400),
        ("GET", "/files?limit=10001", 400),
        ("GET", "/files?limit=a", 400),
        ("GET", "/files?order=up", 400),
        ("POST", "/files", 415),
        ("POST", "/uploads", 415),
        ("POST", "/uploads/upload_none/parts", 404),
        ("POST", "/uploads/upload_none/cancel", 404),
    ],
)
def test_item_69_errors_have_the_envelope(platform_server, method, path, status):
    is_refused(httpx.request(method, platform_server.url + path), status)


def test_item_69_malformed_json(platform_server):
    kind = {"content-type": "application/json"}
    for body in (b"{", b"[]", b"", b'{"bytes": 1}', b'{"bytes": NaN}'):
        is_refused(httpx.post(f"{platform_server.url}/uploads", content=body, headers=kind))


def test_item_70_replies_have_a_request_id_and_a_type(client, platform_server):
    made = upload(client)
    assert made._request_id.startswith("req_")
    for path in ("/files", f"/files/{made.id}"):
        reply = httpx.get(platform_server.url + path)
        assert reply.headers["x-request-id"] and reply.headers["content-type"] == "application/json"
    assert httpx.get(f"{platform_server.url}/files/{made.id}/content").headers["x-request-id"]


def test_item_72_lists_say_whether_more_follows(client, platform_server):
    made = [upload(client, purpose="assistants").id for _ in range(2)]
    page = httpx.get(f"{platform_server.url}/files?purpose=assistants&limit=1").json()
    assert page["object"] == "list" and page["has_more"] is True
    assert page["first_id"] == page["last_id"] == made[1]
    assert httpx.get(f"{platform_server.url}/files?purpose=assistants").json()["has_more"] is False
    client.files.delete(made[0])
    for after in ("file-none", made[0], ""):
        refused = is_refused(httpx.get(f"{platform_server.url}/files", params={"after": after}))
        assert refused["param"] == "after"
