"""What the tests of jobs over HTTP share: rows, uploads, waiting, and a server that trains on a tiny base."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from server_process import ServerProcess, running_server
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.record.database import Database
from tunesmith.record.home import Home

#: The machine may be busy with other tests.
PATIENCE_SECONDS = 240.0
QUICK: dict[str, Any] = {"adapter": {"rank": 4}, "evaluation": {"forgetting_rows": 0}}


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


ROWS = [chat(f"say {n}", f"{n} " * (n % 5 + 1)) for n in range(12)]
VALIDATION_ROWS = [chat(f"and what of {word}?", f"nothing but {word}") for word in ("rain", "tea", "maps")]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: openai.OpenAI, rows: list[Any] | bytes = ROWS, purpose: Any = "fine-tune") -> str:
    """Upload rows, or bytes as they are; return the file's id."""
    content = rows if isinstance(rows, bytes) else lines(rows)
    name = "rows.jsonl" if purpose == "fine-tune" else "rows.txt"
    return client.files.create(file=(name, io.BytesIO(content)), purpose=purpose).id


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> openai.APIStatusError:
    """The refusal of a call, which says that a repetition can't help."""
    with pytest.raises(openai.APIStatusError) as error:
        call(*arguments, **named)
    assert error.value.response.headers["x-should-retry"] == "false"
    assert error.value.response.headers["x-request-id"]
    assert set(error.value.response.json()["error"]) == {"message", "type", "param", "code"}
    return error.value


def events(client: openai.OpenAI, job_id: str, limit: int = 100) -> list[FineTuningJobEvent]:
    """All events of a job, the oldest first."""
    return list(client.fine_tuning.jobs.list_events(job_id, limit=limit))[::-1]


@dataclass
class TuningServer:
    """A server that trains on a tiny base, with a key of each of two projects."""

    server: ServerProcess
    home: Home
    database: Database
    base: Path
    secrets: dict[str, str]

    @property
    def model(self) -> str:
        return self.base.name

    def client(self, who: str = "mine") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=self.secrets[who], max_retries=0)


@pytest.fixture(scope="module")
def tuning_server(tmp_path_factory, tiny_folder) -> Iterator[TuningServer]:
    """A server with a worker, on SQLite: what jobs do to the record is tested on both databases in `tests/runs`."""
    folder = tmp_path_factory.mktemp("tuning")
    home = Home(folder / "home")
    home.check_writable()
    url = f"sqlite:///{home.root / 'record.db'}"
    database = Database(url)
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    other = access.create_project("other").id
    secrets = {"mine": access.create_key("mine", DEFAULT_PROJECT)[1], "theirs": access.create_key("theirs", other)[1]}
    base = tiny_folder("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_DATABASE_URL", url)
        # Figures for Weights & Biases stay on this machine.
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_MODE", "offline")
        settings = {"models": [str(base)], "workers": 1, "dtype": "float32"}
        with running_server(folder / "log", home.root, **settings) as server:
            yield TuningServer(server, home, database, base, secrets)
            server.stop()
    database.close()
