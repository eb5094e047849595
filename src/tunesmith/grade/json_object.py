"""JSON answers: strict reading, exact match by value, and what was found field by field.

Field F1 is the slot F1 of task-oriented dialogue (for the bundled restaurant data: Coope et al. 2020, "Span-ConveRT",
arXiv:2005.08866): a field counts as found only when its path and its value are both right.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from tunesmith.grade.grader import FieldCounts, Grade

#: Deeper nesting than this is read as broken: no honest answer has it, and it could exhaust the stack.
MAX_DEPTH = 64

_FENCE = "```"

#: A JSON value in a form that is equal exactly when the values are equal: ("number", 1) for 1, 1.0 and 1e0.
Canonical = tuple[str, Hashable]


@dataclass(frozen=True, slots=True)
class JsonGrader:
    """Exact match of JSON objects (or arrays), with counts by field.

    `Grade.score` is 1 when both texts hold equal JSON values, `parts["valid JSON"]` is 1 when the answer can be read,
    `fields` counts hits and misses by path. A reference that isn't JSON itself is compared as text.
    """

    def grade(self, answer: str, reference: str) -> Grade:
        """Return the grade of one answer."""
        found, wanted = parse_json(answer), parse_json(reference)
        parts = {"valid JSON": float(found is not None)}
        if wanted is None:
            return Grade(float(answer.strip() == reference.strip()), parts)
        match = found is not None and canonical(found) == canonical(wanted)
        return Grade(float(match), parts, count_fields(found, wanted))


def parse_json(answer: str) -> dict[str, Any] | list[Any] | None:
    """Read an answer that is, as a whole, one JSON object or array; return None when it isn't.

    Allowed around the JSON: white space, and one Markdown fence (a first line "```json" or "```", a last line "```").
    Not allowed: words before or after, a bare string or number, a key that comes twice, `NaN` and `Infinity`, nesting
    deeper than `MAX_DEPTH`. Numbers come back as `Decimal`, so that 1.10 and 1.1 are equal and nothing is rounded.
    """
    try:
        value = json.loads(
            _without_fence(answer.strip()),
            object_pairs_hook=_object_of_unique_keys,
            parse_int=Decimal,
            parse_float=Decimal,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError, InvalidOperation):
        return None
    return value if isinstance(value, dict | list) and not _is_deeper_than(value, MAX_DEPTH) else None


def canonical(value: Any) -> Canonical:
    """Return a hashable form of a JSON value: key order is irrelevant, numbers count by value, strings are exact.

    `true` and 1 differ, `null` and a missing key differ, the order of an array counts.
    """
    match value:
        case dict():
            return ("object", frozenset((key, canonical(item)) for key, item in value.items()))
        case list():
            return ("array", tuple(canonical(item) for item in value))
        case bool():
            return ("boolean", value)
        case str():
            return ("string", value)
        case None:
            return ("null", None)
        case _:
            return ("number", value)


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Canonical]]:
    """Yield each leaf of a JSON value as (dotted path, canonical value).

    {"a": {"b": 1}} gives `a.b`; the elements of a list share one path (`items[].name`), so their order doesn't count.
    An empty object or list inside another is a leaf; at the top it has none. Keys with a dot or bracket are quoted.
    """
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = json.dumps(key, ensure_ascii=False) if set(key) & set('.[]"') or not key else key
            yield from flatten(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for item in value:
            yield from flatten(item, f"{path}[]")
    elif path:
        yield path, canonical(value)


def count_fields(found: Any | None, wanted: Any) -> dict[str, FieldCounts]:
    """Count hits, inventions and misses by field path; `found=None` (an unreadable answer) misses every field.

    A field with a wrong value is both an invention and a miss, as in slot F1.
    """
    answers = Counter(flatten(found)) if found is not None else Counter()
    references = Counter(flatten(wanted))
    counts: defaultdict[str, FieldCounts] = defaultdict(FieldCounts)
    for leaf in answers | references:
        hits = min(answers[leaf], references[leaf])
        counts[leaf[0]] += FieldCounts(hits, answers[leaf] - hits, references[leaf] - hits)
    return dict(sorted(counts.items()))


def sum_fields(rows: Iterable[Mapping[str, FieldCounts]]) -> dict[str, FieldCounts]:
    """Add up the counts of many answers by field path."""
    total: defaultdict[str, FieldCounts] = defaultdict(FieldCounts)
    for row in rows:
        for path, counts in row.items():
            total[path] += counts
    return dict(sorted(total.items()))


def _without_fence(text: str) -> str:
    """Take one Markdown code fence away, if the text is wholly inside it."""
    opening, newline, rest = text.partition("\n")
    if newline and opening.strip().lower() in (_FENCE, _FENCE + "json") and rest.endswith(_FENCE):
        return rest.removesuffix(_FENCE)
    return text


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key that comes twice has no agreed meaning (RFC 8259, section 4)."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key comes twice")
    return members


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads but JSON doesn't know."""
    raise ValueError(f"{name} is no JSON")


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Whether containers are nested more than `depth` deep."""
    level = [value]
    for _ in range(depth):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
