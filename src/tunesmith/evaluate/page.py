"""`report.html`: one file that needs nothing else, safe to open whatever the rows say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tunesmith.evaluate.curves import Curves

#: Longer texts are cut in the page (never in report.json), and so are lists of dropped rows.
SHOWN_CHARACTERS = 1_500
SHOWN_DROPPED = 100

_BADGES = {
    "ship": "Ship it",
    "dont_ship": "Don't ship it",
    "not_enough_evidence": "Not enough evidence",
    "tuning_not_needed": "Tuning isn't needed",
}


def render_page(report: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], curves: Curves | None) -> str:
    """Return the page.

    Args:
        report: `Report.to_json()`.
        shown: the rows that stand side by side (`ShownRow.to_json()`).
        curves: how training went.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(clip=_clip, number=_number, fact=_fact, words=lambda name: str(name).replace("_", " "))
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    kind = report["measure"]["kind"] if report["measure"] else "json"
    from tunesmith.evaluate.drawing import draw_curves  # noqa: PLC0415 (matplotlib takes long, and is wanted at the end)

    drawing = draw_curves(curves) if curves else None
    return template.render(
        report=report,
        badge=_BADGES[report["verdict"]["kind"]],
        binary=kind in ("json", "label"),
        is_perplexity=kind == "perplexity",
        # The drawing is ours: numbers and fixed words only, nothing from a row.
        drawing=Markup(drawing) if drawing else None,  # noqa: S704
        secondary=_secondary_names(report["arms"]),
        fields=_field_table(report["arms"]),
        shown=shown,
        shown_dropped=report["dropped"][:SHOWN_DROPPED],
        dropped_rest=max(0, len(report["dropped"]) - SHOWN_DROPPED),
    )


def _secondary_names(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all further scores, in the order in which they first come."""
    return list(dict.fromkeys(name for arm in arms for name in arm["secondary"]))


def _field_table(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each field of the answers: how often it is wanted, and each arm's score for it."""
    by_arm = [{item["field"]: item for item in arm["fields"]} for arm in arms]
    wanted = {path: item["wanted"] for table in by_arm for path, item in table.items()}
    order = sorted(wanted, key=lambda path: (-wanted[path], path))
    return [
        {"field": path, "wanted": wanted[path], "scores": [table.get(path) for table in by_arm]}
        for path in order
        if wanted[path]
    ]


def _clip(text: str) -> str:
    """Cut a long text and say so; write out characters that can't be shown."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else json.dumps(c)[1:-1] for c in text[:SHOWN_CHARACTERS])
    rest = len(text) - SHOWN_CHARACTERS
    return f"{shown} … ({rest:,} more characters)" if rest > 0 else shown


def _number(value: float | None, digits: int = 1) -> str:
    """Return a number with thousands separated, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _fact(value: Any) -> str:
    """Return any plain value in words."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case Mapping():
            return ", ".join(f"{str(key).replace('_', ' ')} {_fact(item)}" for key, item in value.items()) or "–"
        case list() | tuple():
            return ", ".join(_fact(item) for item in value) or "–"
        case _:
            return str(value)
