"""F12 of the reliability catalogue: the disk is full while a file is uploaded."""

from __future__ import annotations

import openai
import pytest

from conformance.test_files import TEN_LINES, begin, upload
from server_process import running_server
from small_disk import small_disk  # noqa: F401 - a fixture


@pytest.fixture
def server_on_small_disk(small_disk, tmp_path, monkeypatch):  # noqa: F811
    """A server whose files lie on a disk of 1 MB."""
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    monkeypatch.setenv("TUNESMITH_STORE_URL", str(small_disk / "files"))
    with (
        running_server(tmp_path / "log", tmp_path / "home") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield small_disk, client


def is_full(error):
    assert error.status_code == 507 and error.code == "disk_full"
    assert error.response.headers["x-should-retry"] == "false"
    assert "/" not in error.message


def test_F12_a_full_disk(server_on_small_disk):
    disk, client = server_on_small_disk
    kept = upload(client)
    large = upload(client, b"x" * 600_000, "large.bin", "user_data")
    for size in (600_000, 3_000_000):
        with pytest.raises(openai.InternalServerError) as refused:
            upload(client, b"y" * size, "second.bin", "user_data")
        is_full(refused.value)
    begun = begin(client, b"", bytes=600_000)
    with pytest.raises(openai.InternalServerError) as refused:
        client.uploads.parts.create(begun.id, data=b"z" * 600_000)
    is_full(refused.value)
    # No partial file; what was there is there; list, cancel and delete work.
    assert list((disk / "files").glob(".*")) == []
    assert [one.id for one in client.files.list()] == [large.id, kept.id]
    assert client.files.content(kept.id).content == TEN_LINES
    assert client.uploads.cancel(begun.id).status == "cancelled"
    client.files.delete(large.id)
    # Space is back, and so is the service.
    second = upload(client, b"y" * 600_000, "second.bin", "user_data")
    assert client.files.content(second.id).content == b"y" * 600_000
