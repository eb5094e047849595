"""`tunesmith serve`: the OpenAI-compatible server."""

from __future__ import annotations

import os
from typing import Any

from rich.text import Text

from tunesmith.cli.engine_room import api, rest_server
from tunesmith.cli.options import Json, nested, takes_settings
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_result import show_client
from tunesmith.record.home import Home
from tunesmith.record.logs import set_up_logs
from tunesmith.specs.serving import ServeSpec, keys_from

_NAMES_SHOWN = 8
_EMBEDDED = "smollm2-135m"


@takes_settings(
    ServeSpec,
    {
        "host": "--host",
        "port": "--port",
        "api_keys": "--api-key",
        "models": "--model",
        "aliases": "--alias",
        "dtype": "--dtype",
        "backend": "--backend",
        "max_loaded_models": "--max-loaded-models",
        "max_loaded_adapters": "--max-loaded-adapters",
        "max_batch": "--max-batch",
        "cache_bytes": "--cache-bytes",
        "lookahead_rows": "--lookahead-rows",
        "max_waiting": "--max-waiting",
        "allowed_hosts": "--allowed-host",
        "workers": "--workers",
        "log_format": "--log-format",
    },
    panel="Settings",
)
def serve(settings: dict[str, Any], json: Json = False) -> None:
    """Answer with bases and tuned models behind OpenAI's API, until stopped with Ctrl-C."""
    settings.setdefault("api_keys", keys_from(os.environ))
    spec = ServeSpec.parse(nested(settings))
    set_up_logs(spec.log_format, [key.get_secret_value() for key in spec.api_keys])
    home = Home.from_environment()
    screen = Screen(json=json)
    names = list(spec.models) or [*(version.name for version in api.list_models(home)), _EMBEDDED]
    told: dict[str, Any] = {"address": None, "models": names}

    def tell(address: str) -> None:
        told["address"] = address
        screen.heading(f"Serving on {address}")
        for name in names[:_NAMES_SHOWN]:
            screen.say(Text(f"  {name}", style="name"))
        if len(names) > _NAMES_SHOWN:
            screen.say(Text(f"  ... and {len(names) - _NAMES_SHOWN:,} more: tunesmith models list", style="faint"))
        screen.say("", Text("Ask it from Python:", style="faint"))
        show_client(screen, names[0], address=address, key="your key" if spec.api_keys else "none")
        screen.say("", Text("Ctrl-C stops it.", style="faint"))

    rest_server.run_server(spec, home, on_ready=tell)
    screen.finish(told)
