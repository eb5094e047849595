"""A21: HTML in names, rows, completions and errors is inert: no answer is a page, and browsers are told so."""

from __future__ import annotations

import json

import httpx
import pytest

from server_process import running_server
from tiny_models import save_tiny_model

EVIL = "<script>alert(1)</script>"
NAME = f'"><img src=x onerror=alert(1)>{EVIL}.jsonl'
ROW = {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": f"<svg onload=x>{EVIL}"}]}
ROWS = "".join(json.dumps(ROW) + "\n" for _ in range(10)).encode()
#: Each of these forbids a page to do anything at all.
POLICY = "default-src 'none'"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server without a key, with a model that can be made to write anything."""
    folder = tmp_path_factory.mktemp("inert")
    model = save_tiny_model("smollm2", folder / "tiny")
    with running_server(folder, folder / "home", models=[str(model)], dtype="float32") as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def is_inert(reply, kind="application/json"):
    assert reply.headers["content-type"].partition(";")[0] == kind, reply.headers
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"].startswith(POLICY)
    for value in reply.headers.values():
        assert "<" not in value and "onerror=" not in value.replace("%", "")
    return reply


def test_a21_files_are_saved_and_never_shown(http):
    made = is_inert(http.post("/v1/files", files={"file": (NAME, ROWS)}, data={"purpose": "fine-tune"})).json()
    assert made["filename"].endswith(".jsonl")
    for path in ("/v1/files", f"/v1/files/{made['id']}"):
        is_inert(http.get(path))
    content = is_inert(http.get(f"/v1/files/{made['id']}/content"), "application/octet-stream")
    assert content.content == ROWS and content.headers["content-disposition"].startswith("attachment;")
    assert "sandbox" in content.headers["content-security-policy"]
    # What is wrong with a file is told as JSON too.
    broken = http.post("/v1/files", files={"file": (NAME, EVIL.encode())}, data={"purpose": "fine-tune"})
    assert is_inert(broken).status_code == 400


def test_a21_answers_hold_html_as_text(http):
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": EVIL}],
        "structured_outputs": {"choice": [EVIL]},
        "max_tokens": 60,
        "metadata": {"note": EVIL},
    }
    whole = is_inert(http.post("/v1/chat/completions", json={**asked, "store": True}))
    assert whole.json()["choices"][0]["message"]["content"] == EVIL
    is_inert(http.post("/v1/chat/completions", json={**asked, "stream": True}), "text/event-stream")
    stored = f"/v1/chat/completions/{whole.json()['id']}"
    for path in ("/v1/chat/completions", stored, f"{stored}/messages"):
        assert "script" in is_inert(http.get(path)).text
    said = {"model": "tiny", "input": EVIL, "metadata": {"note": EVIL}, "max_output_tokens": 3}
    response = is_inert(http.post("/v1/responses", json=said)).json()
    is_inert(http.post("/v1/responses", json={**said, "stream": True}), "text/event-stream")
    for path in (f"/v1/responses/{response['id']}", f"/v1/responses/{response['id']}/input_items"):
        assert "script" in is_inert(http.get(path)).text


def test_a21_refusals_hold_html_as_text(http):
    evil = "%3Cscript%3Ealert(1)%3C%2Fscript%3E"
    for path in (f"/{evil}", f"/v1/files/{evil}", f"/v1/models/{evil}", f"/v1/responses/{evil}"):
        assert is_inert(http.get(path)).status_code == 404
    assert is_inert(http.post("/v1/chat/completions", json={"model": EVIL, "messages": []})).status_code == 400
    assert is_inert(http.post("/v1/chat/completions", json={EVIL: 1})).status_code == 400
    assert is_inert(http.post("/v1/files", content=EVIL, headers={"content-type": "text/html"})).status_code == 415
    assert is_inert(http.request("TRACE", "/v1/models")).status_code == 405
    assert is_inert(http.get("/v1/models", headers={"host": "evil.example"})).status_code == 403


def test_a21_nothing_that_can_be_read_is_a_page(http):
    """Every route of the schema that reads, and what stands beside them."""
    paths = is_inert(http.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        if "get" not in methods:
            continue
        reply = http.get("".join("x" if i % 2 else part for i, part in enumerate(path.replace("{", "}").split("}"))))
        is_inert(reply, "text/plain" if path == "/metrics" else "application/json")
    for path in ("/", "/docs", "/redoc", "/favicon.ico", "/index.html"):
        assert is_inert(http.get(path)).status_code == 404


def test_a21_logs_keep_html_and_line_ends_on_their_line(server, http):
    http.get("/v1/models/x%0AFAKE%20line", headers={"user-agent": EVIL})
    http.post("/v1/files", files={"file": ("x\nFAKE line.jsonl", b"\nFAKE line")}, data={"purpose": "fine-tune"})
    http.post("/v1/chat/completions", json={"model": "x\nFAKE line", "messages": [{"role": "user", "content": "x"}]})
    assert not any(line.startswith("FAKE") for line in server.errors.read_text().splitlines())
