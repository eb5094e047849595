"""F34: a backup of a platform that goes on working, restored elsewhere, is whole: invariants I1 to I5."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tarfile
import threading
import tracemalloc

import pytest
from sqlalchemy import func, select

from job_workers import JobBench
from tunesmith import __version__
from tunesmith.errors import DataError, StorageError
from tunesmith.models.versions import list_versions, verify
from tunesmith.record.access import DEFAULT_PROJECT
from tunesmith.record.backup import back_up
from tunesmith.record.blobs import name_blob
from tunesmith.record.database import Database
from tunesmith.record.files import Files, NewFile
from tunesmith.record.home import Home
from tunesmith.record.job_events import all_checkpoints
from tunesmith.record.restore import restore
from tunesmith.record.store import Store
from tunesmith.record.tables import files, jobs, metadata, writers


@pytest.fixture
def bench(home, database_url, tiny_folder):
    bench = JobBench(home, database_url, tiny_folder("smollm2"))
    yield bench
    bench.close()


@pytest.fixture
def elsewhere(tmp_path, database_url, request):
    """An empty home with an empty database of the same kind."""
    home = Home(tmp_path / "elsewhere")
    if database_url.startswith("sqlite"):
        yield home, f"sqlite:///{home.root / 'record.db'}"
        return
    cluster = request.getfixturevalue("postgresql_cluster")
    url = cluster.create()
    yield home, url
    cluster.drop(url)


def backed_up(bench, target):
    return back_up(target, bench.home, bench.database, bench.store, __version__)


def restored(target, home, url):
    database = Database(url)
    report = restore(target, home, database, Store(home.root / "files"))
    database.close()
    return report


def rows_of(database):
    with database.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all()))
            for table in metadata.sorted_tables
            if table.name != writers.name
        }


def add_file(bench, content):
    blob = bench.store.add(content)
    with bench.database.write() as connection:
        name_blob(connection, bench.store, blob)
        new = NewFile(DEFAULT_PROJECT, "x.json", "user_data")
        return Files(bench.database, bench.store).add(connection, new, blob)


class Uploading(threading.Thread):
    """Adds and deletes files until it is told to end, as users do."""

    def __init__(self, bench):
        super().__init__(daemon=True)
        self.bench = bench
        self.has_ended = threading.Event()
        self.count = 0
        self.start()

    def run(self):
        kept = Files(self.bench.database, self.bench.store)
        while not self.has_ended.wait(0.005):
            one = add_file(self.bench, f"content {self.count}".encode() * 500)
            if self.count % 2:
                kept.delete(DEFAULT_PROJECT, one.id)
            self.count += 1

    def end(self):
        self.has_ended.set()
        self.join()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", pytest.param("file.tar", marks=pytest.mark.soak)])
def test_f34_a_backup_while_jobs_run_is_restored_whole_and_its_jobs_go_on(
    bench, elsewhere, tmp_path, form, monkeypatch, request
):
    """On PostgreSQL with `--soak`: the tests below show on both databases that every row comes back."""
    if bench.database.kind == "postgresql" and not request.config.getoption("--soak"):
        pytest.skip("on PostgreSQL with --soak")
    done = bench.submit(hyperparameters={"n_epochs": 1, "batch_size": 8})
    bench.start_worker()
    done = bench.wait_over(done.id)
    running = bench.submit(hyperparameters={"n_epochs": 24, "batch_size": 1})
    bench.wait_step(running.id, 30)
    # A step is told a moment after it was taken, later where much else is computed.
    bench.wait(lambda: bench.steps(running.id), "no step is told")
    uploading = Uploading(bench)
    bench.wait(lambda: uploading.count, "nothing is uploaded")
    report = backed_up(bench, tmp_path / form)
    uploading.end()
    assert report.missing == () and report.files["models"] and report.files["runs"] and uploading.count
    weights = bench.weights(done.id)
    for worker in bench.workers:
        worker.kill()
    home, url = elsewhere
    restored(tmp_path / form, home, url)
    monkeypatch.setenv("TUNESMITH_HOME", str(home.root))
    shutil.rmtree(bench.home.root)
    copy = JobBench(home, url, bench.base)
    try:
        check_whole(copy)
        assert copy.weights(done.id) == weights
        assert copy.job(done.id).state == "succeeded" and copy.job(running.id).state == "running"
        told = copy.steps(running.id)
        copy.start_worker()
        ended = copy.wait_over(running.id)
        assert ended.state == "succeeded", copy.logs()
        steps = copy.steps(running.id)
        # It went on from its checkpoint; each step is told once, in order.
        assert steps[: len(told)] == told and steps == list(range(1, len(steps) + 1)) and told
        check_whole(copy)
    finally:
        copy.close()


def check_whole(bench):
    """I1, I4, I5: what the record names is there, with its size and hash, and models are whole."""
    with bench.database.read() as connection:
        if bench.database.kind == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").first() is None
        named = connection.execute(select(files.c.sha256, files.c.bytes)).all()
        named += connection.execute(select(jobs.c.training_sha256, func.length(jobs.c.training_sha256))).all()
        ids = connection.scalars(select(jobs.c.id)).all()
        listed = {one.model for job in ids for one in all_checkpoints(connection, job)}
    assert named
    for sha256, size in named:
        blob = bench.store.check(sha256)
        assert size in (blob.bytes, 64)
    versions = {one.name: one for one in list_versions(bench.home)}
    assert listed <= versions.keys()
    for one in versions.values():
        verify(one)


def test_every_row_comes_back_and_numbers_go_on(bench, elsewhere, tmp_path):
    for number in range(3):
        add_file(bench, f"{number}".encode())
    bench.submit(metadata={"a": "ü\u2028"})
    backed_up(bench, tmp_path / "backup")
    home, url = elsewhere
    report = restored(tmp_path / "backup", home, url)
    assert report.files == {"record.db": 1, "files": 4}
    copy = JobBench(home, url, bench.base)
    assert rows_of(copy.database) == rows_of(bench.database)
    with bench.database.read() as connection:
        newest = connection.scalar(select(func.max(jobs.c.seq)))
    assert copy.submit().seq == newest + 1
    copy.close()


def test_a_backup_of_one_database_is_restored_into_the_other(bench, postgresql_cluster, tmp_path):
    add_file(bench, b"content")
    bench.submit()
    backed_up(bench, tmp_path / "backup.tar")
    home = Home(tmp_path / "other")
    other = f"sqlite:///{home.root / 'record.db'}"
    if bench.database.kind == "sqlite":
        other = postgresql_cluster.create()
    restored(tmp_path / "backup.tar", home, other)
    database = Database(other)
    assert rows_of(database) == rows_of(bench.database)
    database.close()


@pytest.mark.parametrize("form", ["folder", "file.tar"])
def test_f34_files_of_runs_are_of_one_moment_however_large_they_are(bench, tmp_path, form):
    """Appended to, replaced, and cut short while they are copied; and none is ever in memory."""
    if bench.database.kind == "postgresql":
        pytest.skip("this is about files alone")
    run = bench.home.runs / "run-1"
    run.mkdir(parents=True)
    large_bytes = 64 * 2**20
    with (run / "large.log").open("wb") as file:
        file.truncate(large_bytes)
    journal, status, cut = run / "journal.jsonl", run / "status.json", run / "cut.jsonl"
    lines = b"".join(b"%015d\n" % number for number in range(2**18))
    journal.write_bytes(lines[: 2**21])
    cut.write_bytes(lines)
    is_over = threading.Event()

    def change():
        for number in range(1, 10_000):
            if is_over.wait(0.002):
                return
            with journal.open("ab") as file:
                file.write(lines[2**21 + 16 * number :][:16])
            new = run / ".status.json.part"
            new.write_bytes(b"%d" % (number % 10) * 2**21)
            new.rename(status)
            with cut.open("r+b") as file:
                file.truncate(len(lines) // 2 if number % 2 else 2**20)

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    tracemalloc.start()
    try:
        backed_up(bench, tmp_path / form)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        is_over.set()
        changing.join()
    assert most_bytes < large_bytes / 2
    home = Home(tmp_path / "elsewhere")
    restored(tmp_path / form, home, f"sqlite:///{home.root / 'record.db'}")
    copies = {path.name: path.read_bytes() for path in (home.runs / "run-1").iterdir()}
    assert copies["large.log"] == bytes(large_bytes)
    assert copies["journal.jsonl"] == journal.read_bytes()[: len(copies["journal.jsonl"])]
    assert len(copies["journal.jsonl"]) >= 2**21
    assert len(set(copies["status.json"])) == 1 and len(copies["status.json"]) == 2**21
    assert lines.startswith(copies["cut.jsonl"].rstrip(b"\0"))


@pytest.fixture
def small(home, tmp_path):
    """A backup of a small platform, and an empty home."""
    database, store = Database(f"sqlite:///{home.root / 'record.db'}"), Store.from_environment(home)
    database.migrate()
    folder = home.models / "m-1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 1000)
    blob = store.add(b"content")
    with database.write() as connection:
        name_blob(connection, store, blob)
    back_up(tmp_path / "backup", home, database, store, __version__)
    back_up(tmp_path / "backup.tar", home, database, store, __version__)
    database.close()
    return tmp_path, blob.sha256


@pytest.mark.parametrize("what", ["record", "models", "runs"])
def test_nothing_is_restored_over_what_is_there(small, what):
    folder, _ = small
    home = Home(folder / "taken")
    database = Database(f"sqlite:///{home.root / 'record.db'}")
    if what == "record":
        database.migrate()
        with database.write() as connection:
            from tunesmith.record.tables import projects

            connection.execute(projects.insert().values(id="p", created_at=1, name="p", organization_id="o"))
    else:
        (home.root / what / "x").mkdir(parents=True)
    with pytest.raises(StorageError) as fault:
        restore(folder / "backup", home, database, Store(home.root / "files"))
    assert fault.value.code == "not_empty"
    assert not (home.root / "files").exists()
    database.close()


def test_a_backup_never_replaces_anything(small, home):
    folder, _ = small
    database = Database(f"sqlite:///{home.root / 'record.db'}")
    for name, code in (("backup", "already_exists"), ("backup.tar", "already_exists"), ("x.tar.gz", "unknown_form")):
        with pytest.raises(StorageError) as fault:
            back_up(folder / name, home, database, Store.from_environment(home), __version__)
        assert fault.value.code == code
    database.close()


def test_others_may_not_read_a_backup(small):
    folder, _ = small
    assert (folder / "backup").stat().st_mode & 0o077 == 0
    assert (folder / "backup.tar").stat().st_mode & 0o077 == 0


def change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, sha256: change(folder / "files" / sha256[:2] / sha256),
        lambda folder, sha256: (folder / "files" / sha256[:2] / sha256).unlink(),
        lambda folder, sha256: change(folder / "models" / "m-1" / "weights"),
        lambda folder, sha256: change(folder / "record.db"),
        lambda folder, sha256: (folder / "record.db").unlink(),
        lambda folder, sha256: (folder / "manifest.json").unlink(),
        lambda folder, sha256: (folder / "manifest.json").write_text("{"),
        lambda folder, sha256: (folder / "manifest.json").write_text('{"format": 2}'),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_no_record(small, spoil):
    folder, sha256 = small
    spoil(folder / "backup", sha256)
    home = Home(folder / "new")
    database = Database(f"sqlite:///{home.root / 'record.db'}")
    with pytest.raises(DataError) as fault:
        restore(folder / "backup", home, database, Store(home.root / "files"))
    assert fault.value.code in ("damaged_backup", "unknown_backup", "wrong_digest")
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == 0
    database.close()


@pytest.mark.parametrize("name", ["models/../../evil", "/evil", "models//x", "evil", "models/\\..\\evil", "files/./x"])
def test_a12_a_backup_writes_nowhere_else(small, name):
    folder, _ = small
    path = folder / "backup" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    path.write_text(json.dumps(manifest))
    home = Home(folder / "new")
    with pytest.raises(DataError) as fault:
        restored(folder / "backup", home, f"sqlite:///{home.root / 'record.db'}")
    assert fault.value.code == "damaged_backup"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a12_only_plain_files_of_an_archive_count(small, kind):
    folder, _ = small
    with tarfile.open(folder / "backup.tar", "a") as archive:
        member = tarfile.TarInfo("models/m-1/weights")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    home = Home(folder / "new")
    with pytest.raises(DataError):
        restored(folder / "backup.tar", home, f"sqlite:///{home.root / 'record.db'}")
    assert not (home.root / "models").exists()


def test_a_truncated_archive_is_refused(small):
    folder, _ = small
    content = (folder / "backup.tar").read_bytes()
    for size in (0, 100, len(content) // 2):
        (folder / "cut.tar").write_bytes(content[:size])
        home = Home(folder / f"new-{size}")
        with pytest.raises(DataError):
            restored(folder / "cut.tar", home, f"sqlite:///{home.root / 'record.db'}")


def test_content_that_was_missing_already_is_named(bench, tmp_path):
    one = add_file(bench, b"kept")
    bench.store.delete(one.sha256)
    report = backed_up(bench, tmp_path / "backup")
    assert report.missing == (f"files/{one.sha256}",)


def test_what_is_deleted_meanwhile_is_not_named_any_more(bench, tmp_path, monkeypatch):
    """A file goes after the record was copied: a second copy doesn't name it."""
    one = add_file(bench, b"goes")
    kept = Files(bench.database, bench.store)
    size = bench.store.size

    def delete_first(sha256):
        if sha256 == one.sha256:
            kept.delete(DEFAULT_PROJECT, one.id)
        return size(sha256)

    monkeypatch.setattr(bench.store, "size", delete_first)
    report = backed_up(bench, tmp_path / "backup")
    assert report.missing == () and "files" not in report.files
    copy = sqlite3.connect(tmp_path / "backup" / "record.db")
    assert copy.execute("SELECT count(*) FROM files").fetchone() == (0,)
    copy.close()
