"""Files and folders are there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from small_disk import small_disk  # noqa: F401
from tunesmith.errors import StorageError
from tunesmith.record.atomic import new_folder, new_part, remove_folder, sweep, write_bytes, write_json
from tunesmith.record.home import Home


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_whole_files(tmp_path):
    write_json(tmp_path / "a.json", {"x": "é"})
    write_json(tmp_path / "a.json", {"x": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 2\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_not_a_number_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []


def test_folder_appears_only_when_the_block_ends_well(tmp_path):
    with new_folder(tmp_path / "made") as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "sub" / "file").read_text() == "x"
    with pytest.raises(RuntimeError), new_folder(tmp_path / "failed") as part:
        (part / "file").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == ["made"]


def test_existing_folder_is_kept_or_refused(tmp_path):
    with new_folder(tmp_path / "made") as part:
        (part / "first").write_text("")
    with new_folder(tmp_path / "made", if_exists="keep") as part:
        (part / "second").write_text("")
    with pytest.raises(StorageError) as refused, new_folder(tmp_path / "made") as part:
        (part / "third").write_text("")
    assert refused.value.code == "already_exists"
    assert names(tmp_path / "made") == ["first"]
    assert names(tmp_path) == ["made"]


def test_remove_folder(tmp_path):
    with new_folder(tmp_path / "made") as part:
        (part / "file").write_text("")
    remove_folder(tmp_path / "made")
    assert names(tmp_path) == []


def test_sweep_removes_what_a_killed_process_left_and_nothing_else(tmp_path):
    script = (
        "import os, sys, signal; from pathlib import Path; from tunesmith.record.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1]) / 'run') as part:\n"
        "    (part / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    mine = new_part(tmp_path / "mine")
    mine.write_text("still being written")
    (tmp_path / ".users.part").write_text("not ours")
    assert sweep(tmp_path) == [left]
    assert names(tmp_path) == sorted([mine.name, ".users.part"])
    assert sweep(tmp_path, older_than_seconds=-1.0) == [mine]


def test_full_disk_is_a_storage_error_and_leaves_nothing(small_disk):  # noqa: F811
    write_bytes(small_disk / "kept", b"old")
    for attempt in range(2):
        with pytest.raises(StorageError) as full:
            write_bytes(small_disk / ("kept" if attempt else "new"), b"x" * 4_000_000)
        assert full.value.code == "disk_full"
    with pytest.raises(StorageError), new_folder(small_disk / "folder") as part:
        (part / "large").write_bytes(b"x" * 4_000_000)
    assert names(small_disk) == ["kept"]
    assert (small_disk / "kept").read_bytes() == b"old"


def test_a_folder_that_isnt_there_is_told(tmp_path):
    with pytest.raises(StorageError) as fault:
        write_bytes(tmp_path / "missing" / "file", b"")
    assert fault.value.code == "no_such_folder"


def test_other_faults_of_the_system_are_not_dressed_up(tmp_path):
    with pytest.raises(OSError) as fault:
        write_bytes(tmp_path / ("x" * 300), b"")
    assert fault.value.errno == errno.ENAMETOOLONG


def test_home_comes_from_the_environment(tmp_path):
    assert Home.from_environment({"TUNESMITH_HOME": str(tmp_path / "h")}).root == tmp_path / "h"
    assert Home.from_environment({}).root == Path.home() / ".tunesmith"
    assert Home.from_environment({"TUNESMITH_HOME": "~/x"}).root == Path.home() / "x"


def test_home_creates_its_parts_when_asked(tmp_path):
    home = Home(tmp_path / "deep" / "home")
    assert not home.root.exists()
    assert home.runs.is_dir() and home.models.is_dir() and home.bases.is_dir()
    home.check_writable()
    assert names(home.root) == ["bases", "models", "runs"]


def test_home_that_is_a_file_or_full_says_so(tmp_path, small_disk):  # noqa: F811
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as error:
        Home(tmp_path / "file").check_writable()
    assert error.value.code == "not_a_folder"
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(StorageError) as error:
        Home(small_disk).check_writable()
    assert error.value.code == "disk_full"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_home_without_permission_says_so(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError) as error:
        Home(tmp_path / "h").check_writable()
    assert error.value.code == "not_writable"
