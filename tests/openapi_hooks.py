"""What schemathesis is told beside the schema (`SCHEMATHESIS_HOOKS`): names of things that are there, small requests.

A request that names no model that exists, or holds twenty fields of any value, is refused before anything happens. So
most of those that fit the schema lose most of their fields and ask for a model and a file that are there; what doesn't
fit the schema stays as it is.
"""

from __future__ import annotations

import json
import os
from random import Random
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

#: How long answers may get, and how many at once: the machine has other things to do.
_BOUNDS = {
    "n": 2, "best_of": 2, "max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 16, "top_logprobs": 5,
    "logprobs": 3,
}  # fmt: skip
_NEEDED = {"model", "messages", "input", "prompt", "training_file"}
#: The share of other fields that stay, and of requests that are left alone.
_KEPT, _UNTOUCHED = 0.2, 0.2
_HELLO = [{"role": "user", "content": "Hello"}]


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Make requests that fit the schema likelier to be answered."""
    if isinstance(case.query, dict) and "/events" in case.operation.path:
        # A stream ends with its job, which nobody works on here.
        case.query.pop("stream", None)
    is_positive = case.meta.generation.mode is GenerationMode.POSITIVE
    if is_positive and isinstance(case.body, dict) and "model" in case.body:
        case.body = _likelier(case.body)
    return case


def _likelier(body: dict[str, Any]) -> dict[str, Any]:
    # The same body always becomes the same.
    random = Random(json.dumps(body, default=repr, sort_keys=True))
    if random.random() < _UNTOUCHED:
        return body
    body = {name: value for name, value in body.items() if name in _NEEDED or random.random() < _KEPT}
    known = {"model": os.environ["FUZZ_MODEL"], "training_file": os.environ["FUZZ_FILE"], "messages": _HELLO}
    body.update({name: value for name, value in known.items() if name in body and random.random() < 0.9})
    if isinstance(body.get("input"), list) and random.random() < 0.7:
        body["input"] = "Hello"
    for name, most in _BOUNDS.items():
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            body[name] = most
    return body
