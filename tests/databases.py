"""Both databases for tests: SQLite in a folder, and a PostgreSQL cluster that the tests start as their own.

A test that takes `database_url` (an empty database of its own) or `database` (with tables) runs once on each.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tunesmith.record.database import Database

#: Where Debian puts PostgreSQL 15's programs; elsewhere they are looked for on the PATH.
_DEBIAN = Path("/usr/lib/postgresql/15/bin")
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}


class PostgresqlCluster:
    """A cluster of its own that listens on a socket in its folder, and ends with the process that started it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-pg-"))
        self._as_user: list[str] = []
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            names = {one.pw_name for one in pwd.getpwall()}
            other = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self._user = other.pw_name
            os.chown(self.folder, other.pw_uid, other.pw_gid)
            self._as_user = ["setpriv", f"--reuid={other.pw_uid}", f"--regid={other.pw_gid}", "--clear-groups"]
        self._server: subprocess.Popen | None = None
        initialise = ["initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._run([*initialise, f"--username={self._user}", f"--pgdata={self.folder / 'data'}"])
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {**_SETTINGS, "unix_socket_directories": str(self.folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        at_end = ["--pdeathsig", "QUIT"] if self._as_user else []
        self._server = subprocess.Popen(
            [*self._as_user, *at_end, _program("postgres"), "-D", str(self.folder / "data"), *options],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(self._address("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def stop(self, *, at_once: bool = False) -> None:
        """Stop the server, in order or as a power cut would."""
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        self._server.wait(timeout=120)

    def remove(self) -> None:
        """Stop the server and remove everything."""
        self.stop(at_once=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{self._user}@/{name}?host={self.folder}"

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected."""
        self.execute(f"DROP DATABASE IF EXISTS {_name(url)} WITH (FORCE)")

    def terminate_backends(self) -> None:
        """End all connections of others, as a restart or a failing network would."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def execute(self, statement: str) -> None:
        """Execute a statement as the cluster's owner."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _address(self, name: str) -> str:
        return f"host={self.folder} user={self._user} dbname={name}"

    def _run(self, command: list[str]) -> None:
        program, *arguments = command
        subprocess.run(
            [*self._as_user, _program(program), *arguments],
            check=True,
            cwd=self.folder,
            capture_output=True,
            timeout=300,
        )


def _name(url: str) -> str:
    """Return the name of a URL's database."""
    return url.partition("@/")[2].partition("?")[0]


def _program(name: str) -> str:
    """Return a program of PostgreSQL's, or skip the test where it isn't installed."""
    path = _DEBIAN / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        pytest.skip("PostgreSQL isn't installed (Debian: apt-get install postgresql-15)")
    return found


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[PostgresqlCluster]:
    """The cluster of this session."""
    _program("initdb")
    cluster = PostgresqlCluster()
    yield cluster
    cluster.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of this test's own; processes that the test starts may use it too."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'database' / 'record.db'}"
        return
    cluster: PostgresqlCluster = request.getfixturevalue("postgresql_cluster")
    url = cluster.create()
    yield url
    cluster.drop(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of this test's own with all tables, empty."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()
