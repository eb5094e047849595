"""`tunesmith serve`: the OpenAI-compatible server."""

from __future__ import annotations

import os
from typing import Any

from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from tunesmith.cli.engine_room import api, rest_server
from tunesmith.cli.options import Json, nested, takes_settings
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_result import client_lines
from tunesmith.record.home import Home
from tunesmith.specs.serving import ServeSpec, keys_from

_NAMES_SHOWN = 8
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104  (compared with, not bound to)


@takes_settings(
    ServeSpec,
    {
        "host": "--host",
        "port": "--port",
        "api_keys": "--api-key",
        "models": "--model",
        "dtype": "--dtype",
        "max_loaded_models": "--max-loaded-models",
        "max_batch": "--max-batch",
        "max_waiting": "--max-waiting",
        "allowed_hosts": "--allowed-host",
    },
    panel="Settings",
)
def serve(settings: dict[str, Any], json: Json = False) -> None:
    """Answer with bases and tuned models behind OpenAI's API, until stopped with Ctrl-C."""
    settings.setdefault("api_keys", keys_from(os.environ))
    spec = ServeSpec.parse(nested(settings))
    home = Home.from_environment()
    screen = Screen(json=json)
    names = list(spec.models) or [version.name for version in api.list_models(home)]
    address = f"http://{'127.0.0.1' if spec.host == _EVERY_ADDRESS else spec.host}:{spec.port}"
    screen.heading(f"Serving on {address}")
    for name in names[:_NAMES_SHOWN]:
        screen.say(Text(f"  {name}", style="name"))
    if len(names) > _NAMES_SHOWN:
        screen.say(Text(f"  ... and {len(names) - _NAMES_SHOWN:,} more: `tunesmith models list`", style="faint"))
    screen.say("", Text("Ask it from Python:", style="faint"))
    show_client(screen, names[0] if names else "smollm2-135m", address)
    screen.say("", Text("Ctrl-C stops it.", style="faint"))
    rest_server.run_server(spec, home)
    screen.finish({"address": address, "models": names})


def show_client(screen: Screen, model: str, address: str = "http://127.0.0.1:8000", **words: str) -> None:
    """Show the five lines of Python that call a served model."""
    code = "\n".join(client_lines(model, address, **words))
    if screen.story.is_terminal:
        screen.say(Padding(Syntax(code, "python", theme="ansi_dark", background_color="default"), (0, 2)))
    else:
        # Whole lines, so that they can be copied.
        screen.story.print(Text(code), soft_wrap=True)
