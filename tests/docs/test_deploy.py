"""What `deploy/` and docs/operation.md promise: metrics and options that exist, units that systemd takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import typer
import yaml
from markdown_pages import ROOT

from tunesmith.cli.main import app
from tunesmith.rest.metrics import Metrics, RecordFigures
from tunesmith.serve.used import UsedTokens

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
#: Exposure as `systemd-analyze security` counts it: 0 is none, 10 is all.
MOST_EXPOSURE = 1.5


def metric_names() -> set[str]:
    pool = SimpleNamespace(used=UsedTokens(), loaded=[], adapters=[], unfinished=0)
    metrics = Metrics(pool, lambda: RecordFigures({"queued": 1}, 1.0, 1, {"failed": 1}))
    metrics.count("GET", "/healthz", 200, 0.1)
    return set(re.findall(r"^([a-z_]+)", metrics.page().decode(), re.MULTILINE))


@pytest.mark.parametrize("page", ["deploy/alerts.yaml", "docs/operation.md"])
def test_every_metric_that_is_named_exists(page):
    named = set(re.findall(r"\btunesmith_[a-z_]+", (ROOT / page).read_text(encoding="utf-8")))
    names = metric_names()
    assert named and named <= names | {name.removesuffix("_count") for name in names}


def test_every_alert_says_what_is_wrong():
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    assert all(rule["expr"] and rule["annotations"]["summary"] for group in groups for rule in group["rules"])


def commands() -> list[list[str]]:
    """The command lines of units, the image and the services."""
    starts = [re.search(r"^ExecStart=\S+ (.*)$", unit.read_text(), re.MULTILINE)[1].split() for unit in UNITS]
    image = re.search(r"^CMD (\[.*\])$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)[1]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return [*starts, yaml.safe_load(image), services["server"]["command"]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_units_and_images_exist(words):
    command = typer.main.get_command(app).commands[words[0]]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_sound_and_closed(unit, tmp_path):
    copy = tmp_path / unit.name
    # The program isn't installed there; everything else is looked at.
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", str(copy)], capture_output=True, text=True)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found and float(found[1]) <= MOST_EXPOSURE, done.stdout + done.stderr
