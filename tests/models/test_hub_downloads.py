"""F28 of the reliability catalogue: a download is cut, killed or damaged. What isn't whole is no model."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"
#: The weights are more than the library takes at once, 10 MiB, so that it can go on in their middle.
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    WEIGHTS: save({"weight": torch.arange(6_000_000, dtype=torch.float32)}),
}
PIECE_BYTES = 1 << 18

PROGRAM = """
from tunesmith.errors import TunesmithError
from tunesmith.models.hub import hub_snapshot
try:
    print(hub_snapshot("org/tiny").folder)
except TunesmithError as error:
    print(error.code)
"""


def name_of(file: str) -> str:
    """The name by which the Hub and its cache know a file's content."""
    content = FILES[file]
    if file == WEIGHTS:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """As much of the Hub as a download asks for.

    Attributes:
        cuts: after how many bytes the next answers with weights end.
        seconds: how long each 256 KiB takes.
        spoils: the file of which a bit changes on its way.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.cuts: list[int] = []
        self.seconds = 0.0
        self.spoils: str | None = None
        self.continued = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.tell_file(is_whole=False)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.tell_file(is_whole=True)
        elif "/tree/" in self.path:
            self.tell([self.entry(file) for file in FILES])
        else:
            self.tell({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": file} for file in FILES]})

    def entry(self, file: str) -> dict[str, object]:
        found: dict[str, object] = {"type": "file", "path": file, "size": len(FILES[file]), "oid": name_of(file)}
        if file == WEIGHTS:
            found["lfs"] = {"oid": name_of(file), "size": len(FILES[file]), "pointerSize": 1}
        return found

    def tell(self, found: object) -> None:
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def tell_file(self, *, is_whole: bool) -> None:
        file = self.path.rpartition("/")[2]
        content = FILES[file]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("range") or "") or "00")[1])
        self.server.continued += start > 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("content-length", str(len(content) - start))
        self.send_header("etag", f'"{name_of(file)}"')
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if not is_whole:
            return
        if file == self.server.spoils:
            content = content[:-1] + bytes([content[-1] ^ 1])
        end = len(content)
        if file == WEIGHTS and self.server.cuts:
            end = min(end, start + self.server.cuts.pop(0))
        while start < end:
            piece = content[start : min(end, start + PIECE_BYTES)]
            self.wfile.write(piece)
            start += len(piece)
            if file == WEIGHTS:
                time.sleep(self.server.seconds)
        self.close_connection = True


@pytest.fixture
def hub():
    server = FakeHub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(hub, tmp_path):
    """Starts a process that wants the model, with the Hub or without."""

    def start(*, offline: bool = False) -> subprocess.Popen[str]:
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, **settings},
        )

    return start


def said(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return output.strip()


def is_whole(folder: str) -> bool:
    return all((Path(folder) / file).read_bytes() == content for file, content in FILES.items())


def test_f28_a_download_that_is_cut_goes_on_where_it_was(hub, start):
    hub.cuts = [11 << 20]
    folder = said(start())
    assert is_whole(folder) and hub.continued == 1
    # From then on, it is there without a network.
    assert said(start(offline=True)) == folder


def test_f28_a_killed_download_is_no_model_and_the_next_one_completes_it(hub, start, tmp_path):
    chance = random.Random(28)
    hub.seconds = 0.2  # nearly 20 s for all of it: each kill is early enough
    kept = tmp_path / "hf" / "hub"
    for _ in range(2):
        process = start()
        give_up = time.monotonic() + 60
        while not list(kept.rglob("*.incomplete")):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        assert said(start(offline=True)) == "hub_unreachable"
    hub.seconds = 0.0
    folder = said(start())
    assert is_whole(folder) and said(start(offline=True)) == folder


@pytest.mark.parametrize("file", [WEIGHTS, "tokenizer.json"], ids=["SHA-256", "Git's hash"])
def test_f28_a_damaged_download_is_refused_and_downloaded_anew(hub, start, file):
    hub.spoils = file
    assert said(start()) == "damaged_download"
    assert said(start(offline=True)) == "hub_unreachable"
    hub.spoils = None
    folder = said(start())
    assert is_whole(folder) and said(start(offline=True)) == folder


def test_f28_what_was_killed_before_it_was_looked_at_is_looked_at_later(hub, start, tmp_path):
    folder = said(start())
    repository = tmp_path / "hf" / "hub" / "models--org--tiny"
    # As a kill after the last byte leaves it; a bit has changed besides.
    (repository / f"unchecked-{COMMIT}").touch()
    content = (repository / "blobs" / name_of(WEIGHTS)).read_bytes()
    (repository / "blobs" / name_of(WEIGHTS)).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert said(start(offline=True)) == "hub_unreachable"
    assert said(start()) == "damaged_download"
    assert said(start()) == folder and is_whole(folder)
