"""`tunesmith webhooks`: who is told when a fine-tuning job ends."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tunesmith.cli.engine_room import access_record, database_record, rest_webhooks, webhook_record
from tunesmith.cli.options import Json
from tunesmith.cli.screen import Screen, printable
from tunesmith.errors import GateError, RequestError
from tunesmith.record.home import Home

if TYPE_CHECKING:
    from tunesmith.record.webhook_endpoints import Webhook
    from tunesmith.record.webhooks import Webhooks

app = typer.Typer(help="Add, list, remove and test the endpoints that are told when a fine-tuning job ends.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name or id.")]


@app.command("add")
def add_webhook(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for, in your own words.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted to, https://...")],
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            metavar="TYPE",
            help="fine_tuning.job.succeeded, fine_tuning.job.failed or fine_tuning.job.cancelled; give it again for "
            "more. (default: all)",
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="NAME", help="Project whose jobs it is told of. (default: default)"),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Let it be on this machine or a private network, and use http://."),
    ] = False,
    json: Json = False,
) -> None:
    """Add an endpoint and show its secret, this once; with it, receivers check who sent an event."""
    screen = Screen(json=json)
    webhooks, access = _opened()
    found = access.find_project(project or access_record.DEFAULT_PROJECT)
    if found is None:
        raise RequestError(
            f"There is no project '{project}'.", fix="tunesmith keys list shows them.", code="no_such_project"
        )
    rest_webhooks.check_address(url, allows_private=allow_private)
    new = webhooks.add(found.id, name, url, event or (), allows_private=allow_private)
    if not json:  # standard error, where the story then goes, often ends up in a log
        screen.result(Text(new.secret, style="name"), whole=True)
    screen.say(Text("Give it to the receiver as OPENAI_WEBHOOK_SECRET; it isn't shown again.", style="warn"))
    screen.say(Text(f"Try it: tunesmith webhooks test {new.id}", style="faint"))
    screen.finish({**facts(new), "secret": new.secret})


@app.command("list")
def list_webhooks(json: Json = False) -> None:
    """List the endpoints, the oldest first, with what is still to be told to them."""
    screen = Screen(json=json)
    webhooks, _ = _opened()
    found, counts, failures = webhooks.all(), webhooks.counts(), webhooks.last_failures()
    if found:
        rows = [
            (
                Text(printable(one.name), style="name"),
                one.id,
                one.url,
                _state(one, counts.get(one.id, {})),
                failures.get(one.id, ""),
            )
            for one in found
        ]
        screen.listing(rows, header=("name", "id", "url", "events", "last failure"))
    else:
        screen.result(Text("No webhooks. `tunesmith webhooks add NAME URL` adds one."))
    told = [{**facts(one), "deliveries": counts.get(one.id, {}), "last_failure": failures.get(one.id)} for one in found]
    screen.finish({"webhooks": told})


@app.command("remove")
def remove_webhook(name: _Name, json: Json = False) -> None:
    """Remove an endpoint; what was still to be told to it isn't told any more."""
    screen = Screen(json=json)
    removed = _opened()[0].remove(name)
    screen.result(Text(f"Removed {printable(removed.name)} ({removed.id})."))
    screen.finish(facts(removed))


@app.command("test")
def test_webhook(name: _Name, json: Json = False) -> None:
    """Send an endpoint an event of a job that doesn't exist (`ftjob-test`), once, and say what it answered."""
    screen = Screen(json=json)
    webhook = _opened()[0].find(name)
    event = rest_webhooks.sample(webhook)
    outcome = rest_webhooks.send(webhook, event)
    if not outcome.is_good:
        raise GateError(
            outcome.error or "The endpoint refused the event.",
            where=webhook.id,
            fix="Look at the endpoint's own log.",
            code="webhook_failed",
        )
    screen.result(Text(f"The endpoint answered with status {outcome.status}."))
    screen.finish({**asdict(outcome), "event_id": event.event_id})


def facts(webhook: Webhook) -> dict[str, Any]:
    """Return an endpoint as plain data, without its secrets."""
    return {name: value for name, value in asdict(webhook).items() if "secret" not in name}


def _opened() -> tuple[Webhooks, Any]:
    database = database_record.Database.from_environment(Home.from_environment())
    database.migrate()
    access = access_record.Access(database)
    access.ensure_default_project()
    webhooks: Webhooks = webhook_record.Webhooks(database)
    return webhooks, access


def _state(webhook: Webhook, counts: dict[Any, int]) -> str:
    if webhook.disabled_at is not None:
        return "disabled: it said 410 Gone"
    told = [f"{counts[state]:,} {state}" for state in ("delivered", "pending", "failed") if counts.get(state)]
    return ", ".join(told) or "none yet"
