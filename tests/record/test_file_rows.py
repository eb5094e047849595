"""Files, uploads and the content behind them, in the record of both databases."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tunesmith.errors import RequestError, StorageError
from tunesmith.record.access import Access
from tunesmith.record.blob_places import FolderPlace
from tunesmith.record.blobs import free_blobs, sweep_store
from tunesmith.record.database import Database
from tunesmith.record.files import Files, NewFile
from tunesmith.record.pages import Page
from tunesmith.record.store import Store
from tunesmith.record.uploads import Uploads


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def projects(database):
    access = Access(database)
    access.ensure_default_project()
    return ["proj_default", access.create_project("other").id]


@pytest.fixture
def files(database, store, clock, projects):
    return Files(database, store, clock=clock)


@pytest.fixture
def uploads(database, store, clock, projects):
    return Uploads(database, store, clock=clock)


def new(project="proj_default", **more):
    return NewFile(project, more.pop("filename", "a.bin"), more.pop("purpose", "user_data"), **more)


def test_content_goes_with_the_last_row_that_names_it(files, store, uploads):
    blob = store.add(b"content")
    first, second = files.create(new(), blob), files.create(new(filename="b.bin"), blob)
    upload = uploads.create(new(), "text/plain", 7)
    uploads.add_part(upload, blob)
    assert files.delete("proj_default", first.id) and store.exists(blob.sha256)
    assert files.delete("proj_default", second.id) and store.exists(blob.sha256)
    uploads.cancel(upload)
    assert not store.exists(blob.sha256)
    assert not files.delete("proj_default", first.id)


def test_a_row_never_names_content_that_was_deleted_meanwhile(files, store):
    blob = store.add(b"content")
    store.delete(blob.sha256)
    with pytest.raises(StorageError) as refused:
        files.create(new(), blob)
    assert refused.value.code == "busy"
    assert files.list("proj_default", Page()).items == ()


def test_many_who_add_and_delete_the_same_content_never_lose_it(files, store):
    def add_and_delete(number):
        kept = []
        for _ in range(5):
            try:
                kept.append(files.create(new(filename=f"{number}"), store.add(b"the same")))
            except StorageError as error:
                assert error.code == "busy"
        for one in kept[1:]:
            files.delete("proj_default", one.id)
        return kept[:1]

    with ThreadPoolExecutor(4) as pool:
        kept = [one for some in pool.map(add_and_delete, range(4)) for one in some]
    assert len(files.list("proj_default", Page(100)).items) == len(kept)
    assert not kept or b"".join(store.read(kept[0].sha256)) == b"the same"


def test_projects_see_nothing_of_each_other(files, store, uploads, projects):
    mine, other = projects
    file = files.create(new(), store.add(b"content"))
    upload = uploads.create(new(), "text/plain", 7)
    assert files.get(mine, file.id) == file
    assert files.get(other, file.id) is None and uploads.get(other, upload.id) is None
    assert files.list(other, Page()).items == ()
    assert not files.delete(other, file.id)
    with pytest.raises(RequestError):
        files.list(other, Page(after=file.id))


def test_an_expired_file_is_gone_before_it_is_swept(files, store, clock):
    blob = store.add(b"content")
    file = files.create(new(expires_after_seconds=3600), blob)
    assert file.expires_at == file.created_at + 3600
    clock.now += 3599
    assert files.get("proj_default", file.id) and files.delete_expired() == 0
    clock.now += 1
    assert files.get("proj_default", file.id) is None and files.list("proj_default", Page()).items == ()
    assert store.exists(blob.sha256)
    assert files.delete_expired() == 1 and not store.exists(blob.sha256)


def test_order_does_not_depend_on_the_clock(files, store, clock):
    blob = store.add(b"content")
    made = []
    for step in (0, 3600, -7200, 10):
        clock.now += step
        made.append(files.create(new(), blob).id)
    page = files.list("proj_default", Page(3))
    assert [one.id for one in page.items] == made[:0:-1] and page.has_more
    rest = files.list("proj_default", Page(3, after=page.items[-1].id))
    assert [one.id for one in rest.items] == made[:1] and not rest.has_more


def test_the_same_id_again_is_the_same_file(files, store):
    first = files.create(new(id="file-1"), store.add(b"content"))
    assert files.create(new(id="file-1"), store.add(b"content")) == first
    assert files.list("proj_default", Page()).items == (first,)


def test_an_upload_expires_after_an_hour(uploads, store, clock):
    upload = uploads.create(new(), "text/plain", 7)
    blob = store.add(b"content")
    uploads.add_part(upload, blob)
    clock.now += 3600
    assert uploads.get("proj_default", upload.id).status == "expired"
    for ask in (
        lambda: uploads.pending("proj_default", upload.id),
        lambda: uploads.add_part(upload, blob),
        lambda: uploads.complete(upload, blob),
        lambda: uploads.cancel(upload),
    ):
        with pytest.raises(RequestError) as refused:
            ask()
        assert refused.value.code == "upload_expired"
    assert uploads.expire() == 1 and not store.exists(blob.sha256)
    assert uploads.get("proj_default", upload.id).status == "expired"


def test_only_one_of_many_completes_an_upload(uploads, files, store):
    upload = uploads.create(new(), "text/plain", 7)
    blob = store.add(b"content")
    uploads.add_part(upload, blob)

    def complete(_):
        try:
            return uploads.complete(upload, blob)[1]
        except RequestError as error:
            assert error.code == "upload_completed"
            return None

    with ThreadPoolExecutor(4) as pool:
        made = [one for one in pool.map(complete, range(4)) if one]
    assert len(made) == 1 and files.list("proj_default", Page()).items == tuple(made)
    assert store.exists(blob.sha256)


def test_parts_can_not_fill_the_disk(uploads, store):
    upload = uploads.create(new(), "text/plain", 7)
    blob = store.add(b"content")
    large = type(blob)(blob.sha256, 64 * 2**20)
    uploads.add_part(upload, large)
    with pytest.raises(RequestError) as refused:
        uploads.add_part(upload, large)
    assert refused.value.code == "too_many_parts"


def test_what_no_row_names_is_swept_once_it_is_old(files, store, database, tmp_path):
    kept, stray = store.add(b"kept"), store.add(b"stray")
    files.create(new(), kept)
    for path in (tmp_path / "store").glob("??/*"):
        os.utime(path, (0, 0))
    young = store.add(b"young")
    assert sweep_store(database, store) == 1
    assert [store.exists(one.sha256) for one in (kept, stray, young)] == [True, False, True]
    free_blobs(database, store, [kept.sha256])
    assert store.exists(kept.sha256)


@pytest.mark.parametrize("way", ["freed", "swept"])
def test_deletion_of_much_content_keeps_nobody_from_writing(way, database_url, tmp_path, monkeypatch):
    database = Database(database_url, busy_seconds=4.0)
    database.migrate()
    store = Store(tmp_path / "store")
    digests = [store.add(str(number).encode()).sha256 for number in range(14)]
    for path in (tmp_path / "store").glob("??/*"):
        os.utime(path, (0, 0))
    remove = FolderPlace.delete

    def slowly(place, sha256):
        time.sleep(0.4)
        remove(place, sha256)

    monkeypatch.setattr(FolderPlace, "delete", slowly)
    with ThreadPoolExecutor(1) as threads:
        freeing = (
            threads.submit(free_blobs, database, store, digests)
            if way == "freed"
            else threads.submit(sweep_store, database, store)
        )
        access = Access(database)
        while not freeing.done():
            access.ensure_default_project()
            access.create_key("one more", "proj_default")
            time.sleep(0.05)
    freeing.result()
    assert not any(store.exists(sha256) for sha256 in digests)
    database.close()
