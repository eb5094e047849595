"""Documents in a run: prepared, packed into windows to learn from, thinned where there is more than is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tunesmith.data.examples import Document
from tunesmith.prepare.documents import prepare_documents
from tunesmith.prepare.findings import Finding
from tunesmith.prepare.prepared import PreparedData
from tunesmith.specs.data import DataSpec
from tunesmith.train.pretrain import Windows, pack
from tunesmith.train.settings import Amount
from tunesmith.train.sft import Row

#: Where the user doesn't say: windows of so many tokens give text enough context and fit into any machine.
WINDOW_TOKENS = 1024
#: Validation and test are measured in passages of so many tokens: `max_validation_rows` and `max_test_rows` count them.
PASSAGE_TOKENS = 256


def prepare_windows(spec: DataSpec, tokenizer: Any, max_tokens: int) -> tuple[PreparedData[Document], Amount]:
    """Read, check and split documents, and say how much there is to learn in their windows.

    Raises:
        DataError: the documents can't be used.
    """
    prepared = prepare_documents(spec)
    every = pack(prepared.train, tokenizer, max_tokens).rows
    used = every[: spec.max_train_rows]
    findings = list(prepared.findings)
    left_out = len(every) - len(used)
    if left_out:
        message = (
            f"{left_out:,} of {len(every):,} windows of {max_tokens:,} tokens aren't used, because at most "
            f"{len(used):,} are to be learnt."
        )
        findings.append(Finding("train_windows_left_out", message, left_out))
    for side, most in (("validation", spec.max_validation_rows), ("test", spec.max_test_rows)):
        tokens = sum(_learnt(row) for row in pack(getattr(prepared, side), tokenizer, max_tokens).rows)
        if tokens > most * PASSAGE_TOKENS:
            message = (
                f"At most {most:,} of about {tokens // PASSAGE_TOKENS:,} passages are used for {side}, evenly spread."
            )
            findings.append(Finding(f"{side}_passages_left_out", message, tokens // PASSAGE_TOKENS - most))
    amount = Amount(len(used), sum(_learnt(row) for row in used))
    return dataclasses.replace(prepared, findings=tuple(findings)), amount


def training_windows(documents: Sequence[Document], spec: DataSpec, tokenizer: Any, max_tokens: int) -> Windows:
    """Return the windows to learn from, at most `max_train_rows`, the first ones."""
    windows = pack(documents, tokenizer, max_tokens)
    most = spec.max_train_rows
    return Windows(windows.rows[:most], windows.sources[:most])


def validation_windows(documents: Sequence[Document], spec: DataSpec, tokenizer: Any, max_tokens: int) -> list[Row]:
    """Return the windows whose loss is watched: evenly spread ones where there are many."""
    rows = pack(documents, tokenizer, max_tokens).rows
    passages = sum(_learnt(row) for row in rows) / PASSAGE_TOKENS
    return thinned(rows, spec.max_validation_rows / max(1.0, passages))


def thinned(items: Sequence[Any], share: float) -> list[Any]:
    """Return about this share of the items, at least one if there is one, evenly spread."""
    count = min(len(items), max(1, int(share * len(items))))
    return [items[index * len(items) // count] for index in range(count)]


def _learnt(row: Row) -> int:
    return sum(sequence.learnt_tokens for sequence in row)
