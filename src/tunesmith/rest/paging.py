"""Lists on the wire: what a request says about its page, and how a page is answered.

A route declares what it takes, so that the schema tells the truth:

    async def list_things(limit: Limit = 20, after: After = None, order: Order = "desc") -> WireList[WireThing]:
        page = page_of(limit, after, order)
        found = await in_thread(platform.keeping_threads, partial(things.list, project, page))
        return list_of([wire_thing(one) for one in found.items], has_more=found.has_more)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

from tunesmith.record.pages import Page

#: Parameters of lists. Those with another highest limit declare their own.
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
After = Annotated[str | None, Query(description="The id of the last object that was seen.")]
Order = Annotated[Literal["asc", "desc"], Query(description="`desc`: the newest first.")]


class WireObject(BaseModel):
    """What a list holds: its id is the cursor to what follows."""

    id: str


_T = TypeVar("_T", bound=WireObject)


class WireList(BaseModel, Generic[_T]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[_T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def page_of(limit: int, after: str | None, order: str) -> Page:
    """Return which rows a request asks for."""
    return Page(limit, after, is_descending=order in ("desc", "descending"))


def list_of(objects: Sequence[_T], *, has_more: bool) -> WireList[_T]:
    """Return the answer for one page."""
    return WireList(
        data=list(objects),
        first_id=objects[0].id if objects else None,
        last_id=objects[-1].id if objects else None,
        has_more=has_more,
    )
