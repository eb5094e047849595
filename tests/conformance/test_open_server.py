"""A server without keys trusts its own machine alone, until there is a first key (A02, A03)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from server_process import running_server
from tunesmith.errors import SpecError
from tunesmith.record.access import DEFAULT_PROJECT, Access
from tunesmith.rest.keyring import check_has_key
from tunesmith.specs.serving import ServeSpec

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "*"])
def test_a02_an_open_address_needs_a_key(database, host):
    access = Access(database)
    access.ensure_default_project()
    spec = ServeSpec.parse({"host": host})
    with pytest.raises(SpecError) as refused:
        check_has_key(spec, access)
    assert refused.value.code == "key_needed" and "keys create" in refused.value.fix
    check_has_key(ServeSpec.parse({"host": host, "api_keys": ["secret"]}), access)
    key, _ = access.create_key("one", DEFAULT_PROJECT)
    check_has_key(spec, access)
    access.revoke_key(key.id)
    with pytest.raises(SpecError):
        check_has_key(spec, access)


def test_a02_the_server_does_not_start(home):
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "serve", "--host", "0.0.0.0", "--port", "0", "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "key_needed"


@pytest.fixture(scope="module")
def unlocked(tmp_path_factory):
    """A server without any key."""
    folder = tmp_path_factory.mktemp("unlocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(folder / "log", folder / "home") as server:
            yield server, folder / "home"


def test_a03_foreign_names_are_refused_with_every_method(unlocked):
    server, _ = unlocked
    for method in METHODS:
        for path in ("/v1/models", "/v1/files", "/v1/files/file-x", "/healthz", "/openapi.json", "/nowhere"):
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
                reply = httpx.request(method, server.url + path, headers=headers)
                assert reply.status_code == 403, (method, path, headers)
                assert not [name for name in reply.headers if name.startswith("access-control")]


def test_the_first_key_closes_an_open_server_for_good(unlocked):
    server, home = unlocked
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
    made = tunesmith_keys(home, "create", "first")
    time.sleep(1.1)
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    right = {"authorization": f"Bearer {made['secret']}"}
    assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200
    # When the command ends, the key is worth nothing, although it was used a moment ago.
    tunesmith_keys(home, "revoke", made["id"])
    assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 401
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def tunesmith_keys(home, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "keys", *arguments, "--json"],
        capture_output=True, text=True, timeout=300, check=True, env={**os.environ, "TUNESMITH_HOME": str(home)},
    )  # fmt: skip
    assert "sk-" not in done.stderr
    return json.loads(done.stdout)
