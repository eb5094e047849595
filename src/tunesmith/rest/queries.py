"""Queries: what a route doesn't know is refused, as in bodies and forms. A misspelt filter would show everything."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from tunesmith.errors import RequestError

#: Machines that look after servers may add what they like to the paths beside these.
_API = "/v1/"
_LONGEST_SHOWN = 100


async def refuse_unknown_query(http: Request) -> None:
    """Look at a request's query, before its route does.

    Raises:
        RequestError: it has a parameter that the route doesn't declare (`unknown_parameter`).
    """
    route = http.scope.get("route")
    if not http.query_params or not isinstance(route, APIRoute) or not http.url.path.startswith(_API):
        return
    known = _query_names(route.dependant)
    described = (route.openapi_extra or {}).get("parameters", ())
    objects = {one["name"] for one in described if one.get("style") == "deepObject"}
    for name in http.query_params:
        if name not in known and name.partition("[")[0] not in objects:
            shown = name[:_LONGEST_SHOWN]
            raise RequestError(f"Unknown parameter: '{shown}'.", code="unknown_parameter", param=shown)


def _query_names(dependant: Dependant) -> set[str]:
    """Return the parameters that a route takes, and what it depends on."""
    names = {field.alias for field in dependant.query_params}
    return names.union(*map(_query_names, dependant.dependencies))
