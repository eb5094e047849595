"""Reference tables in Markdown from the command line itself: usage, arguments, options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from tunesmith.cli.main import app

# typer's own classes for groups and parameters have no common public type, hence Any.
_ROOT: Any = typer.main.get_command(app)
_VALUES = {str: "TEXT", Path: "PATH", int: "INTEGER", float: "NUMBER"}


def command_names() -> list[str]:
    """Return the top-level commands in the order of `tunesmith --help`."""
    return list(_ROOT.commands)


def command_table() -> str:
    """Return a table of all commands with links to their pages (from a page directly in docs/)."""
    rows = ["| command | what it does |", "|---|---|"]
    for name, command in _ROOT.commands.items():
        rows.append(f"| [`tunesmith {name}`](commands/{name}.md) | {_first_sentence(command.help)} |")
    return "\n".join(rows) + "\n"


def command_reference(name: str) -> str:
    """Return the reference of a command, or of all commands of a group.

    Raises:
        SystemExit: there is no such command.
    """
    if name not in _ROOT.commands:
        raise SystemExit(f"There is no command called {name!r}.")
    command = _ROOT.commands[name]
    inner = getattr(command, "commands", None)
    if inner is None:
        return _reference(command, f"tunesmith {name}")
    parts = [
        f"### `{name} {key}`\n\n{_first_sentence(one.help)}\n\n{_reference(one, f'tunesmith {name} {key}')}"
        for key, one in inner.items()
    ]
    return "\n".join(parts)


def _reference(command: Any, name: str) -> str:
    """Return usage, arguments and options of one command."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [
        parameter for parameter in command.params if parameter.param_type_name == "option" and not parameter.hidden
    ]
    usage = " ".join([name, *(_argument(one) for one in arguments), "[OPTIONS]" if options else ""]).strip()
    parts = [f"```text\n{usage}\n```\n"]
    if arguments:
        rows = [f"| `{_argument(one)}` | {_cell(one.help)} |" for one in arguments]
        parts.append("\n".join(["| argument | what it is |", "|---|---|", *rows]) + "\n")
    if options:
        rows = [f"| {_option(one)} | {_cell(one.help)}{_default(one)} |" for one in options]
        parts.append("\n".join(["| option | what it does |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    """Return an option as it is typed: `--map ROLE=COLUMN`."""
    names = [f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts]]
    if parameter.is_flag:
        return ", ".join(names)
    value = parameter.metavar or _VALUES[parameter.type_descriptor.annotation]
    shown = " \\| ".join(f"`{part}`" for part in value.split("|"))
    return f"{', '.join(names)} {shown}"


def _default(parameter: Any) -> str:
    """Say the default where the help text, which is drawn from the specs, doesn't."""
    value = parameter.default
    if parameter.is_flag or value is None or isinstance(value, list | tuple) or callable(value):
        return ""
    return f" (default {value})"


def _first_sentence(text: str | None) -> str:
    paragraph = (text or "").strip().partition("\n\n")[0]
    return _cell(re.sub(r"\s+", " ", paragraph))


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ").strip()
