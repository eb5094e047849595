"""How cost grows: with the rows' length, with the vocabulary, with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from measured_work import BASE, Bench, Work
from random_bases import SHAPES, Shape, make_base
from sides import BEST_PEER, OURS
from tunesmith.models.load import load_tokenizer
from workloads import WORKLOADS, long_rows

CONTEXT_TOKENS = (256, 512, 1024, 2048, 4096)
VOCABULARIES = (49_152, 98_304, 151_936, 262_144)

#: The fewest rows that Tunesmith takes.
_LEAST_ROWS = 10
_STEP_TOKENS = 4096
#: One step to warm up, two to measure.
_STEPS = 3


def by_context(bench: Bench) -> list[dict[str, Any]]:
    """Train on rows of growing length, as many tokens in each step."""
    tokenizer = load_tokenizer(bench.base_folder())
    found = []
    for tokens in CONTEXT_TOKENS:
        batch_size = _STEP_TOKENS // tokens
        count = max(_LEAST_ROWS, _STEPS * batch_size)
        rows = long_rows(tokens, count, lambda text: len(tokenizer(text)["input_ids"]))
        work = Work(f"context-{tokens}", BASE, rows, batch_size, peer_steps=_STEPS)
        found.append(_point(bench, f"{tokens:,} tokens a row", work))
    return found


def by_vocabulary(bench: Bench) -> list[dict[str, Any]]:
    """Train the 135M shape with random weights and a growing vocabulary."""
    shapes = {f"{size:,} words": replace(SHAPES["135M"], vocabulary=size) for size in VOCABULARIES}
    return _by_shape(bench, shapes)


def by_model(bench: Bench) -> list[dict[str, Any]]:
    """Train growing shapes with random weights."""
    return _by_shape(bench, SHAPES)


GROWTHS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "context": by_context,
    "vocabulary": by_vocabulary,
    "model": by_model,
}


def _by_shape(bench: Bench, shapes: dict[str, Shape]) -> list[dict[str, Any]]:
    rows = WORKLOADS[0].rows()[: _STEPS * 8]
    found = []
    for name, shape in shapes.items():
        with _base(bench, shape) as folder:
            work = Work("shape", str(folder), rows, peer_steps=_STEPS)
            found.append(_point(bench, name, work))
    return found


@contextmanager
def _base(bench: Bench, shape: Shape) -> Iterator[Path]:
    """Yield the folder of a base of this shape; its gigabytes are gone afterwards."""
    folder = bench.scratch / "random-base"
    try:
        yield make_base(shape, bench.base_folder(), folder)
    finally:
        rmtree(folder, ignore_errors=True)


def _point(bench: Bench, name: str, work: Work) -> dict[str, Any]:
    sides = [side for side in (OURS, BEST_PEER) if side in bench.sides]
    return {"at": name, **bench.in_turns(work, sides, rounds=1)}
