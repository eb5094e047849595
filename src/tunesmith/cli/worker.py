"""`tunesmith worker`: works on fine-tuning jobs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from tunesmith.cli.engine_room import worker_process
from tunesmith.cli.options import Json
from tunesmith.cli.screen import Screen
from tunesmith.record.home import Home
from tunesmith.record.logs import set_up_logs
from tunesmith.specs.serving import LogFormat


def worker(
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A device to train on, such as cpu or cuda:0; give it again for more. Without it: what is there.",
        ),
    ] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format",
            metavar="text|json",
            help="Log lines for people, or a JSON object a line, on standard error.",
        ),
    ] = "text",
    json: Json = False,
) -> None:
    """Work on fine-tuning jobs from the server's queue, until stopped with Ctrl-C.

    `tunesmith serve` starts one worker by itself. More may run anywhere that shares its database and its file store.
    """
    set_up_logs(log_format)
    screen = Screen(json=json)
    told: dict[str, str | None] = {"worker": None}

    def tell(name: str) -> None:
        told["worker"] = name
        screen.heading("Waiting for jobs")
        screen.say(Text("Ctrl-C stops it; running jobs keep their work and go on later.", style="faint"))

    settings = worker_process.WorkerSettings(devices=tuple(device) if device else None)
    worker_process.run_worker(settings, Home.from_environment(), on_ready=tell)
    screen.finish(told)
