"""The model card: what a tuned model is, for people who find its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from tunesmith.models.embedded import EMBEDDED


def model_card(
    name: str, base: str, label: str, summary: Mapping[str, Any], kind: Literal["adapter", "model"] = "adapter"
) -> str:
    """Return the card in Markdown.

    Args:
        name: the `ft:` name.
        base: what it was tuned from.
        label: the user's name for it.
        summary: `data`, `train`, `evaluation` as `tune --json` shows them, `verdict` (with its `sentence`), `system`
            (the system prompt of the training rows); what is absent is left out.
        kind: what stands beside the card.
    """
    parts = [
        f"# {label}",
        _what_it_is(name, base, kind),
        _table("Data", ("rows", "train", "validation", "test", "dropped"), summary.get("data")),
        _table("Training", ("rows", "tokens", "seconds", "steps", "loss"), summary.get("train")),
        _results(summary.get("evaluation")),
        _verdict(summary.get("verdict")),
        _usage(name, summary.get("system")),
        _licence(base, kind),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what_it_is(name: str, base: str, kind: Literal["adapter", "model"]) -> str:
    """Return the first paragraph."""
    if kind == "model":
        return f"""`{name}` was tuned from the base model `{base}` with Tunesmith; all of its weights were trained.
This folder holds the whole model, as `transformers` reads it."""
    return f"""`{name}` is an adapter for the base model `{base}`, tuned with Tunesmith.
It is in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""


def _table(title: str, keys: tuple[str, ...], values: Any) -> str:
    """Return a section with one row for each key that has a value."""
    if not isinstance(values, Mapping):
        return ""
    rows = [f"| {key} | {_shown(values[key])} |" for key in keys if values.get(key) is not None]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *rows]) if rows else ""


def _results(evaluation: Any) -> str:
    """Return the section that sets the tuned model beside its base, on test rows that neither has seen."""
    if not isinstance(evaluation, Mapping):
        return ""
    rows = []
    for arm in ("base", "tuned"):
        scores = evaluation.get(arm)
        if isinstance(scores, Mapping):
            rows.append(f"| {arm} | " + " | ".join(_shown(scores.get(key)) for key in ("score", "low", "high")) + " |")
    measure, count = evaluation.get("measure", "score"), _shown(evaluation.get("rows"))
    head = ["## Results\n", f"Measured on {count} test rows that training never saw.\n"]
    return "\n".join([*head, f"| model | {measure} | low | high |", "|---|---|---|---|", *rows]) if rows else ""


def _verdict(verdict: Any) -> str:
    """Return the verdict's sentence."""
    sentence = verdict.get("sentence") if isinstance(verdict, Mapping) else None
    return f"Verdict: {sentence}" if sentence else ""


def _usage(name: str, system: str | None) -> str:
    """Return the section that shows how to call the model, with the system prompt that it was trained with."""
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": "..."}]
    return f"""## Use

Start `tunesmith serve`, then:

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
messages = {json.dumps(messages, ensure_ascii=False)}
answer = client.chat.completions.create(model="{name}", messages=messages)
print(answer.choices[0].message.content)
```

Or in the terminal: `tunesmith chat {name}`."""


def _licence(base: str, kind: Literal["adapter", "model"]) -> str:
    """Return the note on licences."""
    known = EMBEDDED.get(base)
    base_note = f"The base is under {known.licence}." if known else "The base's own licence holds for its weights."
    return f"## Licence\n\n{base_note} The {kind} also carries traces of its training data, whose terms you know best."


def _shown(value: Any) -> str:
    """Return a number as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
