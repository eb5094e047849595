"""Lines of logs: one each, with their request, and nothing that users sent."""

import json
import logging
import sys

import pytest

from tunesmith.errors import StorageError
from tunesmith.record.logs import FACTS, LogLines, request_id

SECRET = "sk-" + "a1B2" * 12


def line(form, message, *arguments, error=None, facts=None, secrets=()):
    trace = None
    if error is not None:
        try:
            raise error
        except Exception:
            trace = sys.exc_info()
    record = logging.LogRecord("tunesmith.x", logging.WARNING, "x.py", 1, message, arguments, trace)
    if facts:
        setattr(record, FACTS, facts)
    return LogLines(form, secrets).format(record)


@pytest.fixture
def in_request():
    token = request_id.set("req_123")
    yield
    request_id.reset(token)


def test_a_line_bears_its_request(in_request):
    told = json.loads(line("json", "done in %d s", 3, facts={"status": 200}))
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning", "logger": "tunesmith.x", "message": "done in 3 s", "request_id": "req_123", "status": 200
    }  # fmt: skip
    assert line("text", "done").endswith("WARNING tunesmith.x [req_123]: done")


def test_without_a_request_there_is_no_id():
    assert "request_id" not in json.loads(line("json", "x"))


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "secret",
    [
        SECRET, "whsec_" + "QUJD" * 8, "Bearer abc.def", "postgresql://user:pass-word@host/name", "the server's own",
    ],
)  # fmt: skip
def test_secrets_are_taken_out(form, secret):
    told = line(form, "before %s after", secret, error=StorageError(f"x {secret} y"), secrets=["the server's own"])
    for part in (SECRET, "QUJDQUJD", "abc.def", "pass-word", "server's own"):
        assert part not in told
    assert "[secret]" in told and "before" in told and "after" in told


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_words_of_foreign_errors_are_left_out(form):
    try:
        raise KeyError("a prompt")
    except KeyError as cause:
        error = ValueError("could not read 'a prompt'")
        error.__cause__ = cause
    told = line(form, "unexpected fault", error=error)
    assert "a prompt" not in told
    assert "builtins.ValueError" in told and "because of builtins.KeyError" in told and "test_logs.py" in told
    assert "the disk" in line(form, "x", error=OSError(5, "the disk"))


def test_a22_nothing_breaks_a_line():
    told = line("text", "%s", 'a\r\nERROR forged: "x"\x1b[31m\u2028')
    assert len(told.splitlines()) == 1 and "\x1b" not in told and "\\n" in told
    assert len(line("json", "%s", "a\n\u2028b").splitlines()) == 1
