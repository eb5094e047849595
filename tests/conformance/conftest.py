"""A platform's server on each database, as a real process, shared by the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from server_process import ServerProcess, running_server
from tunesmith.record.database import Database

#: Small, so that tests of the limit are quick.
MAX_FILE_BYTES = 24 * 2**20


@dataclass
class PlatformServer:
    """A running server with what stands behind it."""

    server: ServerProcess
    home: Path
    database_url: str

    @property
    def url(self) -> str:
        """The base URL of OpenAI's clients."""
        return f"{self.server.url}/v1"

    @property
    def database(self) -> Database:
        """The server's own database, for tests that turn back its clocks."""
        return Database(self.database_url)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def platform_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlatformServer]:
    """A server without a key on an empty record, once on each database."""
    folder = tmp_path_factory.mktemp("platform")
    home = folder / "home"
    url = f"sqlite:///{home / 'record.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_cluster").create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        with running_server(folder / "log", home, max_file_bytes=MAX_FILE_BYTES) as server:
            yield PlatformServer(server, home, url)


@pytest.fixture
def client(platform_server: PlatformServer) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=platform_server.url, api_key="none", max_retries=0) as client:
        yield client
