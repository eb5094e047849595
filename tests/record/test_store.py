"""Content by its hash: whole or not at all, in a folder and at a URL, whatever happens on its way."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_disk import small_disk  # noqa: F401
from tunesmith.errors import DataError, StorageError
from tunesmith.record.home import Home
from tunesmith.record.store import Store


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "files")
    return Store(f"memory://{secrets.token_hex(8)}/files", spool=tmp_path / "spool")


def test_what_is_finished_is_there_under_its_hash(store):
    with store.writer() as writer:
        for piece in (b"one ", b"", b"two"):
            writer.write(piece)
        blob = writer.finish()
    assert (blob.sha256, blob.bytes) == (digest(b"one two"), 7)
    assert b"".join(store.read(blob.sha256)) == b"one two"
    assert b"".join(store.read(blob.sha256, start=4)) == b"two"
    assert b"".join(store.read(blob.sha256, start=1, end=5)) == b"ne t"
    assert store.exists(blob.sha256) and store.size(blob.sha256) == 7
    assert store.check(blob.sha256) == blob == store.add(b"one two")
    store.delete(blob.sha256)
    store.delete(blob.sha256)
    assert not store.exists(blob.sha256)


def test_what_is_missing_is_told(store, tmp_path):
    for ask in (store.read, store.open, store.size, store.check, lambda name: store.fetch(name, tmp_path / "copy")):
        with pytest.raises(StorageError) as fault:
            ask("0" * 64)
        assert fault.value.code == "missing_content"
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["", "A" * 64, "0" * 63, "0" * 65, "../" + "0" * 61, "0" * 63 + "\n", "０" * 64])
def test_what_is_no_digest_never_becomes_a_path(store, name):
    for ask in (store.read, store.open, store.size, store.exists, store.delete, store.check):
        with pytest.raises(DataError) as fault:
            ask(name)
        assert fault.value.code == "invalid_digest"


def test_promised_content_is_hashed_before_it_is_believed(store):
    with pytest.raises(DataError) as fault, store.writer() as writer:
        writer.write(b"mine")
        writer.finish(expected_sha256=digest(b"yours"))
    assert fault.value.code == "wrong_digest"
    assert not store.exists(digest(b"mine")) and not store.exists(digest(b"yours"))


def test_rotten_content_is_noticed_and_healed_by_the_same_upload(tmp_path):
    store = Store(tmp_path / "files")
    blob = store.add(b"content")
    (path,) = (tmp_path / "files").glob("??/*")
    path.write_bytes(b"c0ntent")
    for ask in (store.check, lambda name: store.fetch(name, tmp_path / "copy")):
        with pytest.raises(StorageError) as fault:
            ask(blob.sha256)
        assert fault.value.code == "damaged_content"
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
    store.add(b"content")
    assert store.fetch(blob.sha256, tmp_path / "copy") == blob
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_content_that_arrives_changed_is_not_published(tmp_path, monkeypatch):
    store = Store(f"memory://{secrets.token_hex(8)}", spool=tmp_path / "spool")
    memory = fsspec.filesystem("memory")
    send = type(memory).put_file

    def corrupt(self, source, target, **rest):
        send(self, source, target, **rest)
        self.pipe_file(target, b"corrupt")

    monkeypatch.setattr(type(memory), "put_file", corrupt)
    with pytest.raises(StorageError) as fault:
        store.add(b"content")
    assert fault.value.code == "store_failed"
    assert not store.exists(digest(b"content")) and everything(tmp_path) == []


@given(pieces=st.lists(st.binary(max_size=5000), max_size=8), abort_after=st.none() | st.integers(0, 8))
def test_any_pieces_and_an_end_anywhere(tmp_path_factory, pieces, abort_after):
    root = tmp_path_factory.mktemp("store")
    store = Store(root)
    writer = store.writer()
    for number, piece in enumerate(pieces):
        if number == abort_after:
            writer.abort()
            with pytest.raises(ValueError):
                writer.write(piece)
            with pytest.raises(ValueError):
                writer.finish()
            assert everything(root) == []
            return
        writer.write(piece)
    blob = writer.finish()
    writer.abort()
    assert blob.sha256 == digest(b"".join(pieces)) and blob.bytes == sum(map(len, pieces))
    assert everything(root) == [f"{blob.sha256[:2]}/{blob.sha256}"]
    assert b"".join(store.read(blob.sha256)) == b"".join(pieces)


def test_a_full_disk_is_told_and_leaves_nothing(small_disk):  # noqa: F811
    store = Store(small_disk / "files")
    kept = store.add(b"kept")
    with pytest.raises(StorageError) as fault, store.writer() as writer:
        for _ in range(40):
            writer.write(b"x" * 100_000)
        writer.finish()
    assert fault.value.code == "disk_full" and str(small_disk) not in str(fault.value)
    assert everything(small_disk) == [f"files/{kept.sha256[:2]}/{kept.sha256}"]
    store.delete(kept.sha256)
    assert store.add(b"y" * 500_000).bytes == 500_000


@pytest.mark.parametrize("call", ["fsync", "write", "replace"])
def test_a_failing_disk_is_never_acknowledged(tmp_path, monkeypatch, call):
    store = Store(tmp_path)
    writer = store.writer()
    writer.write(b"content")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    if call == "write":
        monkeypatch.setattr(writer, "_file", Failing(writer._file))
    else:
        monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(StorageError) as fault:
        writer.write(b"x" * 10)
        writer.finish()
    assert fault.value.code == "store_failed"
    monkeypatch.undo()
    assert everything(tmp_path) == []
    with pytest.raises(ValueError):
        writer.finish()


class Failing:
    def __init__(self, file):
        self.file = file
        self.close = file.close

    def write(self, _):
        raise OSError(errno.EIO, "Input/output error")


def test_threads_and_processes_store_the_same_content_at_once(tmp_path):
    script = (
        "import sys; from tunesmith.record.store import Store\n"
        "for n in range(40): Store(sys.argv[1]).add(b'%d' % n * 1000)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    store = Store(tmp_path)
    threads = [threading.Thread(target=lambda: [store.add(b"%d" % n * 1000) for n in range(40)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(everything(tmp_path)) == 40
    for n in range(40):
        store.check(digest(b"%d" % n * 1000))


WRITE_FOREVER = """
import random, sys
from tunesmith.record.store import Store
store, random_bytes = Store(sys.argv[1]), random.Random(int(sys.argv[2])).randbytes
while True:
    with store.writer() as writer:
        for _ in range(5):
            writer.write(random_bytes(200_000))
        print(writer.finish().sha256, flush=True)
"""


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_writer_leaves_whole_blobs_and_what_is_swept(tmp_path, seed):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path), str(seed)], stdout=subprocess.PIPE, text=True
    )
    told = [process.stdout.readline().strip()]
    time.sleep(random.Random(seed).uniform(0.0, 0.2))
    process.kill()
    told += process.stdout.read().split()
    assert process.wait() == -signal.SIGKILL
    store = Store(tmp_path)
    for path in tmp_path.glob("??/*"):
        store.check(path.name)
    # The last line may have been cut by the kill.
    assert {name for name in told if len(name) == 64} <= {path.name for path in tmp_path.glob("??/*")}
    parts = [name for name in everything(tmp_path) if name.endswith(".part")]
    assert store.sweep(nothing_unneeded) == len(parts)
    assert not any(name.endswith(".part") for name in everything(tmp_path))


@contextmanager
def nothing_unneeded(digests):
    yield []


def test_the_sweep_removes_old_blobs_that_nobody_needs_and_nothing_else(store):
    names = [store.add(b"%d" % n).sha256 for n in range(5)]
    asked = []

    @contextmanager
    def unneeded(digests):
        asked.extend(digests)
        yield [name for name in digests if name in names[:2]]

    half = store.writer()
    half.write(b"being uploaded")
    assert store.sweep(unneeded) == 0 and asked == []
    assert store.sweep(unneeded, older_than_seconds=-1.0) >= 2
    assert sorted(asked) == sorted(names)
    assert [store.exists(name) for name in names] == [False, False, True, True, True]


def test_the_sweep_spares_what_was_stored_again_meanwhile(tmp_path):
    store = Store(tmp_path)
    blob = store.add(b"again")
    (path,) = tmp_path.glob("??/*")
    os.utime(path, (1, 1))

    @contextmanager
    def unneeded(digests):
        store.add(b"again")
        yield list(digests)

    assert store.sweep(unneeded) == 0
    assert store.exists(blob.sha256)


def test_a_reader_reads_on_when_the_blob_goes(tmp_path):
    store = Store(tmp_path)
    blob = store.add(b"x" * 3_000_000)
    pieces = store.read(blob.sha256)
    store.delete(blob.sha256)
    assert sum(map(len, pieces)) == 3_000_000


def test_where_it_is_comes_from_the_environment(tmp_path):
    home = Home(tmp_path / "home")
    blob = Store.from_environment(home, {}).add(b"x")
    assert everything(tmp_path) == [f"home/files/{blob.sha256[:2]}/{blob.sha256}"]
    for url in (str(tmp_path / "b"), f"file://{tmp_path / 'b'}"):
        Store.from_environment(home, {"TUNESMITH_STORE_URL": url}).add(b"x")
        assert (tmp_path / "b" / blob.sha256[:2] / blob.sha256).exists()
    with pytest.raises(StorageError) as fault:
        Store.from_environment(home, {"TUNESMITH_STORE_URL": "nonsense://user:word@host/x"})
    assert fault.value.code == "invalid_store_url" and "word" not in str(fault.value)


def test_memory_stays_constant(tmp_path):
    import tracemalloc

    store = Store(tmp_path)
    piece = b"x" * 65_536
    tracemalloc.start()
    with store.writer() as writer:
        for _ in range(800):
            writer.write(piece)
        blob = writer.finish()
    assert sum(len(piece) for piece in store.read(blob.sha256)) == blob.bytes == 800 * 65_536
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 2**20
