"""Which rows a finished run learnt in which step, as tokens: so that peers learn the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.models.load import load_tokenizer
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.pinned_data import load_pinned
from tunesmith.train.batches import rows_of_steps
from tunesmith.train.settings import numbers
from tunesmith.train.sft import encode

Steps = list[list[Rendered]]


def steps_of_run(run: str, home: Home) -> Steps:
    """Return each optimiser step's rows, in the order of training.

    Raises:
        ValueError: a row is more than one sequence, which peers can't learn as one.
    """
    folder = RunFolder.find(run, home)
    spec = folder.spec()
    assert not isinstance(spec.limits.max_tokens, str)
    renderer = ChatRenderer(load_tokenizer(resolve_base(spec.base, home).folder))
    rows = encode(load_pinned(folder.data).train, renderer, spec.limits.max_tokens)
    if any(len(row) != 1 for row in rows):
        raise ValueError("a row was rendered as several sequences")
    batch_size, epochs, _ = numbers(spec)
    return [[rows[number][0] for number in step] for step in rows_of_steps(len(rows), batch_size, epochs, spec.seed)]


def by_length(steps: Steps, batch_size: int, seed: int = 0) -> Steps:
    """Return the same rows in steps of like length, the steps in random order: the least padding there can be."""
    rows = sorted((row for step in steps for row in step), key=lambda row: len(row.token_ids))
    grouped = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    # A short last step stays last, where a loader in order puts it.
    whole = len(grouped) - (len(grouped[-1]) < batch_size)
    order = [*np.random.default_rng(seed).permutation(whole).tolist(), *range(whole, len(grouped))]
    return [grouped[number] for number in order]


def write_token_rows(steps: Sequence[Sequence[Rendered]], path: Path) -> None:
    """Write rows for peers: `input_ids`, and `labels` with -100 where nothing is learnt."""
    lines = []
    for row in (row for step in steps for row in step):
        labels = [token if learnt else -100 for token, learnt in zip(row.token_ids, row.learnt, strict=True)]
        lines.append(json.dumps({"input_ids": list(row.token_ids), "labels": labels}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
