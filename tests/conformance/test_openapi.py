"""L13: what the server says about itself at `/openapi.json` is true.

Requests are made from the schema by schemathesis, in the order in which objects are made, used and deleted: nothing may
be a 5xx, answers must fit the schema, what the schema forbids must be refused, what was deleted is 404, and nothing
answers without the key. On SQLite alone: the record is tested on both databases elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from server_process import running_server
from tunesmith.rest.guard import OPEN_PATHS

KEY = "the-servers-own-key"
ROWS = b'{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "so"}]}\n' * 12
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "use_after_free", "ensure_resource_availability", "ignored_auth", "unsupported_method",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_folder):
    """A server with a key and a tiny model, and the address of its schema."""
    folder = tmp_path_factory.mktemp("openapi")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(
            folder / "log",
            folder / "home",
            models=[str(tiny_folder("smollm2"))],
            dtype="float32",
            api_keys=[KEY],
            default_max_tokens=8,
        ) as running:
            yield running


@pytest.fixture(scope="module")
def schema(server):
    return httpx.get(f"{server.url}/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()


def references(node):
    """All references in a schema."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "$ref" and isinstance(value, str))
        for one in node.values():
            yield from references(one)
    elif isinstance(node, list):
        for one in node:
            yield from references(one)


def operations(schema):
    return [(path, method, one) for path, all in schema["paths"].items() for method, one in all.items()]


def test_l13_references_lead_somewhere(schema):
    parts = schema["components"]["schemas"]
    for reference in references(schema):
        assert reference.removeprefix("#/components/schemas/") in parts


def test_l13_every_route_tells_of_errors_and_keys(schema):
    assert schema["security"] == [{"key": []}]
    for path, method, operation in operations(schema):
        assert {"4XX", "5XX"} <= operation["responses"].keys(), (path, method)
        assert "422" not in operation["responses"], (path, method)
        assert (operation.get("security") == []) == (path in OPEN_PATHS), (path, method)


def fuzz(server, model: str, log: Path, *more: str) -> int:
    """Run schemathesis against the server; return how many requests it made."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json",
        "--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS), "--no-color", "--no-shrink",
        "--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "60",
        # Without a worker it isn't ready, and says so with 503.
        "--exclude-path", "/readyz", *more,
    ]  # fmt: skip
    hooks = {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(Path(__file__).parents[1])}
    facts = {"FUZZ_MODEL": model, "FUZZ_FILE": file.id}
    done = subprocess.run(command, capture_output=True, text=True, cwd=log.parent, env={**os.environ, **hooks, **facts})
    log.write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return int(re.search(r"(\d+) generated", done.stdout)[1])


def test_l13_some_hundred_requests(server, tiny_folder, tmp_path):
    few = ["--seed", "3", "--max-examples", "8", "--phases", "fuzzing,stateful"]
    assert fuzz(server, tiny_folder("smollm2").name, tmp_path / "log", *few) >= 200


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_l13_ten_thousand_requests(server, tiny_folder, tmp_path):
    many = ["--max-examples", "300", "--continue-on-failure"]
    assert fuzz(server, tiny_folder("smollm2").name, tmp_path / "log", *many) >= 10_000
