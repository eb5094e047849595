"""Models go from the record first, then from the disk; what is left between is swept."""

from __future__ import annotations

import shutil

import pytest

from job_models import add_job, add_model, unlisted_model
from serving_models import register_tuned
from tunesmith.errors import ModelError, StorageError
from tunesmith.models.versions import find_version, list_versions
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.home import Home
from tunesmith.record.job_events import all_checkpoints
from tunesmith.record.job_models import find_job_model, may_use, usable_models
from tunesmith.record.jobs import change_job
from tunesmith.record.pages import Page
from tunesmith.record.permissions import list_permissions, share_model
from tunesmith.runs import model_removal
from tunesmith.runs.model_removal import remove_model, sweep_models


@pytest.fixture
def place(tmp_path, database, tiny_folder):
    """A home, a record with two projects, and the folder of a tiny base."""
    home = Home(tmp_path / "home")
    home.check_writable()
    access = Access(database)
    access.ensure_default_project()
    return home, database, tiny_folder("smollm2"), access.create_project("other").id


def test_a_model_is_its_projects_and_theirs_with_whom_it_is_shared(place):
    home, database, base, other = place
    mine, shared = (add_model(database, home, base, seed=seed) for seed in (0, 1))
    theirs = add_model(database, home, base, seed=2, project_id=other)
    with database.write() as connection:
        share_model(connection, shared.name, [other])
    with database.read() as connection:
        assert usable_models(connection, DEFAULT_PROJECT).keys() == {mine.name, shared.name}
        assert usable_models(connection, other).keys() == {shared.name, theirs.name}
        assert may_use(connection, shared.name, other) and not may_use(connection, mine.name, other)
        assert not may_use(connection, theirs.name, DEFAULT_PROJECT)
        owned = find_job_model(connection, shared.name)
    assert owned is not None and (owned.project_id, owned.job_id) == (DEFAULT_PROJECT, shared.made.run)


def test_a_removed_model_is_gone_everywhere_and_only_once(place):
    home, database, base, other = place
    version, stays = (add_model(database, home, base, seed=seed) for seed in (0, 1))
    with database.write() as connection:
        share_model(connection, version.name, [other])
    assert remove_model(version, home, database) and not remove_model(version, home, database)
    assert [one.name for one in list_versions(home)] == [stays.name]
    with database.read() as connection:
        assert all_checkpoints(connection, version.made.run) == []
        assert not may_use(connection, version.name, other) and usable_models(connection, other) == {}
        assert list_permissions(connection, version.name, Page()).items == ()
    by_hand = register_tuned(base, home, label="by-hand")
    assert remove_model(by_hand, home, database) and not remove_model(by_hand, home, database)


def test_what_a_crash_leaves_between_record_and_disk_is_swept(place, monkeypatch, caplog):
    home, database, base, _ = place
    version = add_model(database, home, base)

    def fail(_):
        raise StorageError("the disk failed", code="not_writable")

    with monkeypatch.context() as patch:
        patch.setattr(model_removal, "delete_version", fail)
        assert remove_model(version, home, database)
    assert version.folder.exists() and "can't be removed now" in caplog.text
    assert not remove_model(version, home, database), "the second caller is told that it is gone"
    assert sweep_models(home, database) == 1 and sweep_models(home, database) == 0
    assert not version.folder.exists()


def test_a_sweep_takes_only_what_nobody_can_want(place):
    home, database, base, _ = place
    kept = [add_model(database, home, base), register_tuned(base, home, label="by-hand")]
    running = add_job(database, home, str(base), state="running")
    kept.append(unlisted_model(home, base, running, seed=1))
    foreign = register_tuned(base, home, label="elsewhere", seed=2, run="ftjob-elsewhere", organization="local")
    kept.append(foreign)
    assert sweep_models(home, database) == 0
    with database.write() as connection:
        change_job(connection, running.id, state="cancelled")
    assert sweep_models(home, database) == 1
    assert {one.name for one in list_versions(home)} == {one.name for one in kept if one.made.run != running.id}


def test_a_model_that_another_was_tuned_from_stays(place):
    home, database, base, _ = place
    version = add_model(database, home, base)
    shutil.copytree(base, version.folder, dirs_exist_ok=True)  # as if it had been trained whole
    child = register_tuned(version.folder, home, label="child", seed=1)
    with pytest.raises(ModelError) as refused:
        remove_model(version, home, database)
    assert refused.value.code == "model_in_use" and child.name not in str(refused.value)
    assert remove_model(child, home, database) and remove_model(version, home, database)


@pytest.mark.parametrize("state", ["validating_files", "queued", "running", "pausing", "paused"])
def test_a_job_keeps_the_model_that_it_starts_from(place, state):
    home, database, base, _ = place
    version = add_model(database, home, base)
    job = add_job(database, home, version.name, state=state)
    with pytest.raises(ModelError) as refused:
        remove_model(version, home, database)
    assert refused.value.code == "model_in_use" and "job" in refused.value.message
    assert find_version(version.name, home)
    with database.write() as connection:
        change_job(connection, job.id, state="failed")
    assert remove_model(version, home, database)
