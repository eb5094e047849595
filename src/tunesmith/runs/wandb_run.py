"""A job's figures in Weights & Biases, step by step; the one file that knows `wandb`.

Nothing that happens on the way there ends a job: it is told once, and training goes on without it.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEY_VARIABLE = "WANDB_API_KEY"
#: How long the beginning and the end may keep a job waiting.
_START_SECONDS, _END_SECONDS = 30, 30


def why_unavailable() -> str | None:
    """Return why this machine can't pass figures on; None: it can."""
    if importlib.util.find_spec("wandb") is None:
        return "the package wandb isn't installed on this server"
    if not os.environ.get(KEY_VARIABLE):
        return f"no key of Weights & Biases is registered: {KEY_VARIABLE} isn't set for this server"
    return None


class WandbRun:
    """A run there, with the id of its job.

    Args:
        asked: what the job's integration says.
        job_id: the job.
        config: settings that are shown with the run.
        folder: where the library keeps what it hasn't sent yet.
        on_trouble: told, once, why figures don't get there.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        job_id: str,
        config: Mapping[str, Any],
        folder: Path,
        on_trouble: Callable[[str], object],
    ) -> None:
        self._on_trouble = on_trouble
        self._run: Any = None
        reason = why_unavailable()
        if reason is not None:
            self._give_up(reason)
            return
        import wandb  # noqa: PLC0415 - optional, and slow to start

        self._errors: tuple[type[Exception], ...] = (wandb.Error, OSError)
        try:
            self._run = wandb.init(
                project=asked["project"],
                entity=asked.get("entity"),
                name=asked.get("name") or job_id,
                tags=asked.get("tags"),
                id=job_id,
                resume="allow",
                reinit="create_new",
                config=dict(config),
                dir=str(folder),
                # Nothing of this machine goes there but the figures.
                settings=wandb.Settings(
                    init_timeout=_START_SECONDS,
                    console="off",
                    silent=True,
                    disable_git=True,
                    save_code=False,
                    x_disable_meta=True,
                    x_disable_stats=True,
                ),
            )
        except self._errors as error:
            self._give_up(str(error))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Pass the figures of a step on."""
        if self._run is None:
            return
        try:
            self._run.log(dict(metrics), step=int(metrics["step"]))
        except self._errors as error:
            self._give_up(str(error))

    def end(self) -> None:
        """Send what is left, for a bounded time; the rest is lost."""
        if self._run is None:
            return
        ending = threading.Thread(target=self._run.finish, name="wandb", daemon=True)
        ending.start()
        ending.join(_END_SECONDS)
        if ending.is_alive():
            self._give_up("the last figures couldn't be sent in time")

    def _give_up(self, reason: str) -> None:
        self._run = None
        self._on_trouble(f"Figures don't go to Weights & Biases: {reason}")
