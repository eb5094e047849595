"""What is acknowledged stays, and what isn't leaves nothing: locks, kills, and a database that goes away."""

from __future__ import annotations

import fcntl
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select, text

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.tables import blobs, files, projects

WRITING = str(Path(__file__).with_name("writing.py"))


def start_writing(url: str, name: str, count: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, WRITING, url, name, str(count)], stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen) -> list[int]:
    """Return the numbers that a process told. The last line may be cut by a kill."""
    return [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]


def stored(database: Database, name: str) -> list[int]:
    with database.read() as connection:
        query = select(projects.c.created_at).where(projects.c.name == name).order_by(projects.c.seq)
        return list(connection.scalars(query))


def add(connection, name: str) -> None:
    connection.execute(projects.insert().values(id=name, name=name, organization_id="o", created_at=1))


def check_integrity(database: Database) -> None:
    """I4: nothing is half there."""
    with database.read() as connection:
        counts = {connection.scalar(select(func.count()).select_from(table)) for table in (projects, blobs, files)}
        assert len(counts) == 1
        if database.kind == "sqlite":
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
            assert connection.execute(text("PRAGMA foreign_key_check")).first() is None


class Held:
    """The write lock, held by a stranger until `release`."""

    def __init__(self, url: str):
        if url.startswith("sqlite"):
            file = url.removeprefix("sqlite:///")
            self.connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            self.connection.execute("BEGIN IMMEDIATE")
        else:
            self.connection = psycopg.connect(url)
            self.connection.execute("LOCK TABLE projects IN ACCESS EXCLUSIVE MODE")

    def release(self) -> None:
        self.connection.rollback()
        self.connection.close()


def test_f10_a_short_lock_is_waited_for(database, database_url):
    held = Held(database_url)
    release = threading.Timer(3.0, held.release)
    start = time.monotonic()
    release.start()
    with database.write() as connection:
        add(connection, "x")
    assert time.monotonic() - start > 2.5
    release.join()
    assert len(stored(database, "x")) == 1


def test_f10_a_long_lock_is_busy_for_all_who_wait_and_passes(database_url):
    database = Database(database_url, busy_seconds=2.0)
    database.migrate()
    held = Held(database_url)
    codes = []

    def write(number: int) -> None:
        try:
            with database.write() as connection:
                add(connection, f"x{number}")
        except StorageError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == ["busy"] * 8
    # All gave up in their time, not one after the other, which would take 16 s.
    assert time.monotonic() - start < 12.0
    held.release()
    write(9)
    assert len(stored(database, "x9")) == 1
    database.close()


def test_too_many_readers_wait_their_time(database_url):
    database = Database(database_url, busy_seconds=0.5)
    database.migrate()
    opened = [database.read() for _ in range(16)]
    for one in opened:
        one.__enter__()
    with pytest.raises(StorageError) as fault, database.read():
        pass
    assert fault.value.code == "busy"
    for one in opened:
        one.__exit__(None, None, None)
    assert stored(database, "x") == []
    database.close()


def test_writers_of_many_threads_and_processes_lose_nothing(database, database_url):
    processes = {name: start_writing(database_url, name, 40) for name in ("p", "q")}

    def write(name: str) -> None:
        for number in range(40):
            with database.write() as connection:
                add(connection, f"{name}{number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, process in processes.items():
        assert told(process) == list(range(40)) == stored(database, name)
        assert process.wait() == 0
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(projects)) == 200


def test_the_process_that_waits_longest_writes_next(tmp_path):
    """The heartbeat of a worker gets through while a server writes without a pause. PostgreSQL's locks are fair."""
    url = f"sqlite:///{tmp_path / 'record.db'}"
    database = Database(url)
    database.migrate()
    held = Held(url)
    process = start_writing(url, "first", 1)
    give_up = time.monotonic() + 60
    while not is_held_by_another(tmp_path / "record.db.turn"):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    second = threading.Thread(target=lambda: [database.retry(lambda connection: add(connection, "second"))])
    second.start()
    time.sleep(0.2)
    held.release()
    second.join()
    assert told(process) == [0]
    with database.read() as connection:
        assert list(connection.scalars(select(projects.c.name).order_by(projects.c.seq))) == ["first", "second"]
    database.close()


def is_held_by_another(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_no_half_and_everything_it_told(database, database_url, seed):
    process = start_writing(database_url, "x", 1_000_000)
    assert process.stdout.readline() == "0\n"
    time.sleep(random.Random(seed).uniform(0.05, 0.4))
    process.kill()
    numbers = [0, *told(process)]
    assert process.wait() == -signal.SIGKILL
    found = stored(database, "x")
    assert found[: len(numbers)] == numbers
    # At most the one that was being stored was stored untold.
    assert len(numbers) <= len(found) <= len(numbers) + 2
    check_integrity(database)
    with database.write() as connection:
        connection.execute(files.delete())


@pytest.fixture
def postgresql(postgresql_cluster):
    url = postgresql_cluster.create()
    database = Database(url)
    database.migrate()
    yield database, url
    database.close()
    postgresql_cluster.drop(url)


def test_f11_backends_that_are_ended_all_the_time_lose_and_double_nothing(postgresql, postgresql_cluster):
    database, url = postgresql
    processes = {name: start_writing(url, name, 60) for name in ("a", "b")}
    ended = 0
    while any(process.poll() is None for process in processes.values()):
        postgresql_cluster.terminate_backends()
        ended += 1
        time.sleep(0.05)
    for name, process in processes.items():
        assert told(process) == list(range(60)) == stored(database, name)
        assert process.returncode == 0
    assert ended > 5
    check_integrity(database)


@pytest.mark.parametrize("at_once", [False, True], ids=["in order", "at once"])
def test_f11_a_server_that_is_restarted_loses_and_doubles_nothing(postgresql, postgresql_cluster, at_once):
    database, url = postgresql
    process = start_writing(url, "x", 150)
    assert process.stdout.readline() == "0\n"
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
        for _ in range(2):
            postgresql_cluster.stop(at_once=at_once)
            postgresql_cluster.start()
            time.sleep(0.1)
    assert [0, *told(process)] == list(range(150)) == stored(database, "x")
    assert process.wait() == 0
    check_integrity(database)


def test_f11_a_server_that_stays_away_is_told(postgresql, postgresql_cluster, monkeypatch):
    monkeypatch.setattr("tunesmith.record.database._RECONNECT_SECONDS", 0.5)
    database, url = postgresql
    postgresql_cluster.stop()
    try:
        for ask in (database.check, lambda: database.retry(lambda connection: add(connection, "x"), attempts=2)):
            with pytest.raises(StorageError) as fault:
                ask()
            assert fault.value.code == "unavailable" and url not in str(fault.value)
    finally:
        postgresql_cluster.start()
    database.retry(lambda connection: add(connection, "x"))
    assert len(stored(database, "x")) == 1


@pytest.mark.parametrize("how", ["read", "write"])
def test_f11_who_comes_while_it_is_away_waits_for_it(postgresql, postgresql_cluster, monkeypatch, how):
    """Without asking again: a read, or a write outside `retry`, begins once the database is back."""
    # A busy machine may take longer than usual to bring it back.
    monkeypatch.setattr("tunesmith.record.database._RECONNECT_SECONDS", 120.0)
    database, _ = postgresql
    database.close()

    def count():
        with getattr(database, how)() as connection:
            return connection.scalar(select(func.count()).select_from(projects))

    with ThreadPoolExecutor(1) as threads:
        postgresql_cluster.stop()
        try:
            waiting = threads.submit(count)
            time.sleep(1)
        finally:
            postgresql_cluster.start()
        assert waiting.result() == 0


@pytest.mark.parametrize("is_stored", [True, False])
def test_f11_what_became_of_a_commit_is_asked(postgresql, monkeypatch, is_stored):
    """The connection breaks in the commit; whether it was stored before or not, one row is there in the end."""
    database, _ = postgresql
    attempts = []

    def rows(connection):
        attempts.append(1)
        add(connection, "x")
        if len(attempts) == 1:
            break_at_commit(connection, is_stored)

    database.retry(rows)
    assert len(attempts) == (1 if is_stored else 2)
    assert len(stored(database, "x")) == 1


def break_at_commit(connection, is_stored: bool) -> None:
    """Let the driver's next commit fail as if the network did, after the server has stored it or before."""
    driver = connection.connection.driver_connection
    commit = driver.commit

    def failing():
        if is_stored:
            commit()
        driver.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    driver.commit = failing
