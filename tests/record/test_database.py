"""Both databases keep the same promises."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time

import pytest
from sqlalchemy import exc, func, select, text

from small_disk import small_disk  # noqa: F401
from tunesmith.errors import RequestError, SpecError, StorageError
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.tables import job_metadata, keys, projects
from tunesmith.record.turns import FairLock


def row(name: str) -> dict:
    return {"id": f"proj_{name}", "name": name, "organization_id": "org", "created_at": 1}


def add(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute(projects.insert().values(row(name)))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(projects.c.name).order_by(projects.c.seq)))


def test_a_write_is_there_when_its_block_ends_well_and_gone_when_not(database, database_url):
    with database.write() as connection:
        connection.execute(projects.insert().values(row("kept")))
        assert names(database) == []
    with pytest.raises(KeyError), database.write() as connection:
        connection.execute(projects.insert().values(row("lost")))
        raise KeyError
    assert names(database) == ["kept"]
    other = Database(database_url)
    assert names(other) == ["kept"]
    other.close()


def test_a_read_sees_one_moment(database):
    add(database, "before")
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(projects)) == 1
        add(database, "after")
        assert connection.scalar(select(func.count()).select_from(projects)) == 1
    assert names(database) == ["before", "after"]


def test_a_read_cant_write(database):
    with pytest.raises(StorageError), database.read() as connection:
        connection.execute(projects.insert().values(row("x")))
    assert names(database) == []


def test_a_number_is_never_given_twice(database):
    add(database, "a")
    add(database, "b")
    with database.write() as connection:
        last = connection.scalar(select(func.max(projects.c.seq)))
        connection.execute(projects.delete())
    add(database, "c")
    with database.read() as connection:
        assert connection.scalar(select(projects.c.seq)) > last


def test_numbers_are_in_the_order_in_which_rows_are_seen(database):
    seen: list[int] = []
    done = threading.Event()

    def follow():
        while not done.is_set() or not seen or len(seen) < 60:
            with database.read() as connection:
                after = seen[-1] if seen else 0
                seen.extend(connection.scalars(select(projects.c.seq).where(projects.c.seq > after).order_by("seq")))

    def write(thread: int) -> None:
        for n in range(20):
            with database.write() as connection:
                connection.execute(projects.insert().values(row(f"{thread}-{n}")))
                time.sleep(0.001 * (n % 3))

    follower = threading.Thread(target=follow)
    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in (follower, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    follower.join(timeout=60)
    assert len(seen) == len(set(seen)) == 60


def test_what_a_write_read_stays_true_until_it_ends(database, database_url):
    other = Database(database_url)
    add(database, "counter")

    def count(mine: Database) -> None:
        for _ in range(15):
            with mine.write() as connection:
                value = connection.scalar(select(projects.c.created_at))
                time.sleep(0.001)
                connection.execute(projects.update().values(created_at=value + 1))

    threads = [threading.Thread(target=count, args=(mine,)) for mine in (database, database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.scalar(select(projects.c.created_at)) == 46
    other.close()


def test_constraints_hold(database):
    add(database, "a")
    with pytest.raises(exc.IntegrityError):
        add(database, "a")
    with pytest.raises(exc.IntegrityError), database.write() as connection:
        connection.execute(job_metadata.insert().values(job_id="none", key="k", value="v"))


@pytest.mark.parametrize("bad", ["nul \0", "half \ud800"])
def test_text_that_cant_be_kept_is_the_callers_mistake(database, bad):
    with pytest.raises(RequestError) as fault:
        add(database, bad)
    assert fault.value.code == "invalid_text"
    with pytest.raises(RequestError), database.read() as connection:
        connection.execute(select(projects).where(projects.c.id == bad))


def test_values_come_back_as_they_were(database):
    add(database, "p")
    scopes = {"b": ["ü", "\0", "\ud800", 1.5, None, True], "a": {}}
    secret = {"name": "n", "hash": "h", "hint": "x", "limits": [], "project_id": "proj_p", "created_at": 2**40}
    with database.write() as connection:
        connection.execute(keys.insert().values(id="k", scopes=scopes, **secret))
    with database.read() as connection:
        found = connection.execute(select(keys)).one()
    assert found.scopes == scopes and list(found.scopes) == ["b", "a"]
    assert found.limits == [] and found.created_at == 2**40 and found.revoked_at is None
    with pytest.raises(exc.StatementError), database.write() as connection:
        connection.execute(keys.update().values(scopes=float("nan")))


def test_errors_of_the_database_tell_nothing_of_the_machine(database, tmp_path):
    with pytest.raises(exc.DBAPIError), database.write() as connection:
        connection.execute(text("SELECT nonsense FROM projects"))
    with pytest.raises(exc.IntegrityError) as fault, database.write() as connection:
        connection.execute(keys.insert().values(id="secret-value", name="n", hash="h", hint="x", scopes=1, limits=1))
    assert "secret-value" not in str(fault.value).partition("DETAIL")[0]


def test_a_write_inside_a_write_is_told_at_once(database):
    with database.write(), pytest.raises(RuntimeError), database.write():
        pass
    add(database, "still works")


def test_tables_that_arent_there_are_told(database_url):
    database = Database(database_url)
    for ask in (database.check, lambda: names(database)):
        with pytest.raises(StorageError) as fault:
            ask()
        assert fault.value.code == "record_not_ready"
    database.migrate()
    database.check()
    database.close()


def test_a_forked_child_opens_connections_of_its_own(database):
    add(database, "parent")
    with database.read() as connection:
        connection.execute(select(projects)).all()
        child = os.fork()
        if child == 0:
            try:
                add(database, "child")
                os._exit(0 if names(database) == ["parent", "child"] else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(connection.execute(select(projects)).all()) == 1
    add(database, "after")
    assert names(database) == ["parent", "child", "after"]


def test_parent_and_child_write_at_once(database):
    add(database, "before")
    child = os.fork()
    try:
        for n in range(40):
            add(database, f"{'child' if child == 0 else 'parent'} {n}")
    finally:
        if child == 0:
            os._exit(0 if sys.exc_info()[0] is None else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(names(database)) == sorted(
        ["before", *(f"{who} {n}" for who in ("child", "parent") for n in range(40))]
    )


def test_a_child_forked_while_another_thread_writes_can_write(database):
    is_writing, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with database.write() as connection:
            connection.execute(projects.insert().values(row("parent")))
            is_writing.set()
            may_end.wait(0.3)

    thread = threading.Thread(target=write)
    thread.start()
    is_writing.wait()
    child = os.fork()
    if child == 0:
        try:
            add(database, "child")
            os._exit(0)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    add(database, "after")
    assert names(database) == ["parent", "child", "after"]


def test_the_longest_waiting_is_next():
    lock, order = FairLock(), []
    assert lock.acquire(1.0)

    def wait(number: int) -> None:
        assert lock.acquire(60.0)
        order.append(number)
        lock.release()

    threads = []
    for number in range(10):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while len(lock._waiting) <= number:
            time.sleep(0.001)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == list(range(10))
    assert lock.acquire(0.0)
    late = threading.Thread(target=lambda: order.append(lock.acquire(0.05)))
    late.start()
    late.join()
    assert order[-1] is False
    lock.release()
    assert lock.acquire(0.0)


def test_the_file_is_for_its_owner_alone(tmp_path):
    database = Database.from_environment(Home(tmp_path / "home"), {})
    database.migrate()
    add(database, "x")
    for path in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with database.write() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused_without_telling_their_password(url):
    with pytest.raises(SpecError) as fault:
        Database(url)
    assert fault.value.code == "invalid_database_url"
    assert "secret" not in f"{fault.value} {fault.value.fix}"


def test_a_server_that_isnt_there_is_told_without_its_address(monkeypatch):
    monkeypatch.setattr("tunesmith.record.database._RECONNECT_SECONDS", 0.3)
    database = Database("postgres://user:secret@127.0.0.1:1/name")
    with pytest.raises(StorageError) as fault:
        database.migrate()
    assert fault.value.code == "unavailable"
    assert not {"secret", "127.0.0.1", "user:"} & set(str(fault.value).split())
    assert "secret" not in repr(database)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "record.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError) as fault:
        Database(f"sqlite:///{tmp_path / 'record.db'}").migrate()
    assert fault.value.code == "record_damaged" and str(tmp_path) not in str(fault.value)


def test_a_full_disk_is_told_and_what_was_written_stays(small_disk):  # noqa: F811
    database = Database(f"sqlite:///{small_disk / 'record.db'}")
    database.migrate()
    with pytest.raises(StorageError) as fault:
        for n in range(3000):
            add(database, f"{n}" + "x" * 3000)
    assert fault.value.code == "disk_full" and str(small_disk) not in str(fault.value)
    stored = names(database)
    assert [int(name.rstrip("x")) for name in stored] == list(range(len(stored)))
    database.close()
