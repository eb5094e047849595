"""Servers that the tests of `rest` share: real processes, started once."""

from __future__ import annotations

import openai
import pytest

from server_process import running_server
from serving_models import register_tuned
from tiny_models import save_slow_model, save_tiny_model
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.home import Home

#: A model whose chat template writes tool calls.
CALLER = "caller"


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """A home with two tuned versions of a tiny base; the second has another number of its own."""
    folder = tmp_path_factory.mktemp("served")
    base = save_tiny_model("smollm2", folder / "tiny", num_key_value_heads=4)
    home = Home(folder / "home")
    return base, home, [register_tuned(base, home, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """The folder of a model that takes seconds for a long answer, and never ends one by itself."""
    return save_slow_model("smollm2", tmp_path_factory.mktemp("slow") / "slow")


@pytest.fixture(scope="session")
def server(tuned, slow, tmp_path_factory):
    """A server without a key: a tiny base, its tuned versions, and a slow model."""
    base, home, versions = tuned
    with running_server(
        tmp_path_factory.mktemp("server"),
        home.root,
        models=[str(base), str(slow), *(version.name for version in versions)],
        dtype="float32",
        max_batch=2,
        max_waiting=2,
        max_loaded_models=2,
        max_body_bytes=1 << 20,
    ) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def keyed_server(slow, tmp_path_factory):
    """A server with a model that calls tools and a slow one, and keys of two projects."""
    folder = tmp_path_factory.mktemp("responses")
    home = folder / "home"
    home.mkdir()
    database = Database(f"sqlite:///{home / 'record.db'}")
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    other = access.create_project("other").id
    keys = {"mine": access.create_key("mine", DEFAULT_PROJECT)[1], "theirs": access.create_key("theirs", other)[1]}
    database.close()
    model = save_tiny_model("qwen2", folder / CALLER)
    with running_server(folder, home, models=[str(model), str(slow)], dtype="float32") as running:
        yield running, keys
