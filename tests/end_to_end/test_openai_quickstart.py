"""examples/openai_quickstart.py runs as it is, on a tiny base behind the alias that its docstring tells of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from server_process import running_server
from tiny_models import save_tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_quickstart.py"
TIMEOUT_SECONDS = 400


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    base = save_tiny_model("smollm2", tmp_path / "tiny")
    aliases = [f"gpt-4o-mini-2024-07-18={base}"]
    with running_server(tmp_path / "log", tmp_path / "home", aliases=aliases, models=[str(base)], workers=1) as server:
        told = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        server.stop()
    assert told.returncode == 0, told.stderr + told.stdout + server.errors.read_text()
    lines = told.stdout.splitlines()
    steps = [int(found[1]) for line in lines if (found := re.match(r"  Step (\d+)/60: ", line))]
    assert steps == list(range(1, 61))
    assert "  The job has successfully completed" in lines
    assert [line.split(":")[0] for line in lines if line.startswith("checkpoint")] == [
        f"checkpoint at step {step}" for step in (20, 40, 60)
    ]
    asked = [line.split()[1] for line in lines if re.fullmatch(r" *\d+  \S+", line)]
    assert asked[0] == "gpt-4o-mini-2024-07-18" and len(asked) == 4
    assert asked[1].endswith(":ckpt-step-20") and asked[2].endswith(":ckpt-step-40")
    assert "tiny answers:" in lines and f"{asked[3]} answers:" in lines
    assert lines[-1].startswith("step_metrics.csv has 60 steps: step,train_loss,")
