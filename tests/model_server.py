"""A server with keys of two projects and models as jobs leave them, for tests of models over HTTP.

It runs on SQLite alone: `tests/runs/test_model_removal.py` and `tests/record/test_shared_models.py` have the record's
part on both databases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletion

from job_models import add_model
from server_process import ServerProcess, running_server
from serving_models import register_tuned
from tiny_models import LONG_CONTEXT_TOKENS, save_tiny_model
from tunesmith.models.versions import ModelVersion
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.home import Home

HELLO = [{"role": "user", "content": "Hello"}]
ALIAS = "gpt-4o-mini-2024-07-18"


@dataclass
class ModelServer:
    """A server with keys of two projects, a tiny base under an alias, and a model that was tuned by hand."""

    server: ServerProcess
    database: Database
    home: Home
    base: Path
    by_hand: ModelVersion
    secrets: dict[str, str]
    other_project: str

    def client(self, who: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=self.secrets[who], max_retries=0)

    def add_model(self, **changes) -> ModelVersion:
        return add_model(self.database, self.home, self.base, **changes)


@pytest.fixture(scope="module")
def model_server(tmp_path_factory) -> Iterator[ModelServer]:
    """The server."""
    folder = tmp_path_factory.mktemp("models")
    home = Home(folder / "home")
    home.check_writable()
    url = f"sqlite:///{home.root / 'record.db'}"
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    other = access.create_project("other").id
    secrets = {"mine": access.create_key("mine", DEFAULT_PROJECT)[1], "theirs": access.create_key("theirs", other)[1]}
    secrets["admin"] = access.create_key("admin", DEFAULT_PROJECT, is_admin=True)[1]
    base = save_tiny_model("smollm2", folder / "tiny", context_tokens=LONG_CONTEXT_TOKENS)
    by_hand = register_tuned(base, home, label="by-hand", seed=99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        settings = {"models": [str(base), by_hand.id], "aliases": [f"{ALIAS}={base}"], "dtype": "float32"}
        with running_server(folder / "log", home.root, **settings) as server:
            yield ModelServer(server, database, home, base, by_hand, secrets, other)
    database.close()


def ask(client: openai.OpenAI, model: str, **more) -> ChatCompletion:
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, **more)


def names(client: openai.OpenAI) -> list[str]:
    return [model.id for model in client.models.list()]


def refused(call, *arguments) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call(*arguments)
    assert error.value.response.headers["x-should-retry"] == "false"
    return error.value
