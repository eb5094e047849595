"""`tunesmith`: the command line. It reads arguments, calls `tunesmith.api`, and shows what comes back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tunesmith import __version__
from tunesmith.cli import keys, models, runs, webhooks
from tunesmith.cli.audit import audit
from tunesmith.cli.backup import backup, restore
from tunesmith.cli.chat import chat
from tunesmith.cli.check import check
from tunesmith.cli.demo import demo
from tunesmith.cli.errors import INTERRUPTED, show_error, show_fault, show_interruption, usage_error
from tunesmith.cli.generate import generate
from tunesmith.cli.plan import plan
from tunesmith.cli.serve import serve
from tunesmith.cli.tune import tune
from tunesmith.cli.worker import worker
from tunesmith.errors import TunesmithError

app = typer.Typer(
    name="tunesmith",
    help="From a file of examples to a proven, served specialist model, on your own machine.",
    epilog="Start with `tunesmith demo`. Each command explains itself: tunesmith tune --help",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_LEARN, _USE, _KEEP = "Learn", "Use", "Look after"
app.command("demo", rich_help_panel=_LEARN)(demo)
app.command("check", rich_help_panel=_LEARN)(check)
app.command("plan", rich_help_panel=_LEARN)(plan)
app.command("tune", rich_help_panel=_LEARN)(tune)
app.command("chat", rich_help_panel=_USE)(chat)
app.command("generate", rich_help_panel=_USE)(generate)
app.command("serve", rich_help_panel=_USE)(serve)
app.command("worker", rich_help_panel=_USE)(worker)
app.add_typer(models.app, name="models", rich_help_panel=_KEEP)
app.add_typer(runs.app, name="runs", rich_help_panel=_KEEP)
app.add_typer(keys.app, name="keys", rich_help_panel=_KEEP)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=_KEEP)
app.command("audit", rich_help_panel=_KEEP)(audit)
app.command("backup", rich_help_panel=_KEEP)(backup)
app.command("restore", rich_help_panel=_KEEP)(restore)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code: 0 done, 1 an internal fault, 2 the user's input, 3 a gate, 130 stopped."""
    as_json = "--json" in arguments
    try:
        code = typer.main.get_command(app).main(args=list(arguments), prog_name="tunesmith", standalone_mode=False)
    except TunesmithError as error:
        return show_error(error, as_json=as_json)
    except typer.TyperException as error:
        return show_error(usage_error(error), as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        return show_interruption(as_json=as_json)
    except BrokenPipeError:
        return _close_output()
    except Exception as error:  # the last resort: nothing may end in a bare traceback
        return show_fault(error, as_json=as_json)
    if code == INTERRUPTED:  # typer's word for Ctrl-C
        return show_interruption(as_json=as_json)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(run(sys.argv[1:]))


def _close_output() -> int:
    """Leave quietly when the reader of a pipe has gone."""
    # Python would complain once more when it flushes at the end.
    sys.stderr.close()
    return 0
