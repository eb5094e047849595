"""What the tests of `serve` and `rest` share: tuned versions of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message
from tunesmith.models.adapters.lora import LoraAdapter, add_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.models.versions import Candidate, ModelVersion, register
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec


def prompt(text: str) -> Conversation:
    return Conversation((Message("user", text),))


def random_adapter(model: Any, seed: int, **settings: Any) -> LoraAdapter:
    """An adapter that changes every answer, as training would leave it."""
    adapter = add_lora(model, LoraSpec(**{"rank": 4, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameter_groups()[0].parameters:
        parameter.data.normal_(0.0, 0.2, generator=generator)
    return adapter


def register_tuned(
    base: Path,
    home: Home,
    *,
    label: str = "bookings",
    seed: int = 0,
    template: str | None = None,
    adapter: dict[str, Any] | None = None,
    **changes: Any,
) -> ModelVersion:
    """Register a version of the base in a folder.

    Args:
        base: the base's folder.
        home: where to.
        label: its name.
        seed: of its weights.
        template: the chat template that it was trained with; its base's by default.
        adapter: settings of `LoraSpec`.
        changes: facts of the candidate to replace.
    """
    source = resolve_base(str(base), home)
    loaded = load_base(source, "float32")
    renderer = ChatRenderer(loaded.tokenizer, template)
    tuned = random_adapter(loaded.model, seed, **(adapter or {}))

    def fill(folder: Path) -> None:
        tuned.save(folder, source)

    facts = {
        "base": source.name,
        "base_sha256": source.sha256,
        "base_short_name": source.short_name,
        "run": f"run-{label}-{seed}",
        "label": label,
        "spec_sha256": "5" * 64,
        "data_sha256": "d" * 64,
        "template_sha256": renderer.template_hash,
        **changes,
    }
    return register(Candidate(**facts), fill, renderer.template, home)
