"""What all tests share: a home of their own, tiny models, and the embedded base converted once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import HealthCheck, settings

from databases import database, database_url, postgresql_cluster  # noqa: F401

# Read by huggingface_hub when it is imported; a test never waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

# httpx gives up after five seconds, unless told otherwise, which a busy machine may need to load a model.
_patience = httpx.get.__kwdefaults__["timeout"]  # the one object that all its functions and clients begin with
_patience.connect = _patience.read = _patience.write = _patience.pool = 120.0

# The same examples each time and no clock: whether a test passes says something about the code, not about the machine.
# `pytest --hypothesis-profile=default` looks at new ones.
settings.register_profile("house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


#: What stands in for the parameters of a test without any.
_NO_PARAMETERS = SimpleNamespace(params={})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let long variants of tests be asked for."""
    parser.addoption("--soak", action="store_true", help="also run the tests that take many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes many minutes, unless asked for; start with the files that hold slow tests.

    None of them is then what the last process works on alone.
    """
    for item in items:
        if _is_a_second_time_on_postgresql(item):
            item.add_marker(pytest.mark.soak)
    if not config.getoption("--soak"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _is_a_second_time_on_postgresql(item: pytest.Item) -> bool:
    """Whether a slow test of a whole server repeats on PostgreSQL what it does on SQLite.

    The record itself, files, jobs and every fault of the database are tested on both each time.
    """
    folder = item.path.parent.name
    if folder not in ("conformance", "faults") or item.path.name in ("test_files.py", "test_jobs.py"):
        return False
    return "postgresql" in getattr(item, "callspec", _NO_PARAMETERS).params.values()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty home of this test's own, also for processes that the test starts."""
    from tunesmith.record.home import Home

    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return Home.from_environment()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a family's tiny model, made once in a session. Don't write into it."""
    from tiny_models import save_tiny_model

    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = save_tiny_model(family, tmp_path_factory.mktemp("tiny") / f"tiny-{family}")
        return folders[family]

    return folder


@pytest.fixture(scope="session")
def embedded_home(request: pytest.FixtureRequest):
    """A home with the embedded base converted already; kept in pytest's cache, so only the first session converts."""
    from tunesmith.models.resolve import resolve_base
    from tunesmith.record.home import Home

    home = Home(Path(request.config.cache.mkdir("tunesmith-home")))
    resolve_base("smollm2-135m", home)
    return home


@pytest.fixture
def home_with_base(home, embedded_home):
    """An empty home of this test's own that shares the converted embedded base."""
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "bases").symlink_to(embedded_home.bases, target_is_directory=True)
    return home
