"""Who asks: what the guard finds out, and routes go by."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        key_id: the key's id; None on a server that asks for none.
        project_id: the project whose files, jobs and models the request may see; routes ask for nothing else.
        name: the key's name, for people.
        organization_id: the project's organisation.
        is_admin: whether the request may do what concerns all projects.
    """

    key_id: str | None
    project_id: str
    name: str
    organization_id: str
    is_admin: bool = False


def caller_of(request: Request) -> Caller:
    """Return who sent a request; also as a dependency: `caller: Annotated[Caller, Depends(caller_of)]`."""
    caller: Caller = request.state.caller
    return caller
