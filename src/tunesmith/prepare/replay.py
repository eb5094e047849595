"""General rows that are learnt along: read, without what validation or test ask, some of them held out."""

from __future__ import annotations

import dataclasses
from typing import Any

from tunesmith.data.problems import refusal
from tunesmith.errors import DataError
from tunesmith.prepare.fingerprint import prompt_hash, row_hash
from tunesmith.prepare.pipeline import load_file, without_duplicates
from tunesmith.prepare.prepared import PreparedData, Replay
from tunesmith.specs.data import DataSpec, SourceSpec

#: Every tenth general row is held out, at most so many: what the base could do is measured on them.
_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.1, 200
#: More general rows than this are of no use to a specialist; they are chosen by their hashes.
_MAX_ROWS = 20_000


def with_replay(prepared: PreparedData[Any], spec: DataSpec) -> PreparedData[Any]:
    """Return the data with the general rows of `spec.replay`, if it asks for some.

    Rows whose prompt stands in validation or test are left out: nothing of either is learnt this way. The same rows
    give the same choice, in whatever order they come.

    Raises:
        DataError: the file can't be read, or rows are broken and `on_problem` is `error`, or no row is left
            (`no_replay_rows`).
    """
    replay = spec.replay
    if replay is None:
        return prepared
    file = SourceSpec(path=replay.path, format=replay.format or "auto", mapping=replay.mapping, system=replay.system)
    loaded = load_file(file)
    if loaded.problems and spec.on_problem == "error":
        raise refusal(loaded.problems)
    rows, _ = without_duplicates(loaded.rows)
    asked_elsewhere = {prompt_hash(row) for row in (*prepared.validation, *prepared.test)}
    own = sorted((row for row in rows if prompt_hash(row) not in asked_elsewhere), key=row_hash)[:_MAX_ROWS]
    held_out = min(_MAX_HELD_OUT, round(_HELD_OUT_SHARE * len(own)))
    if len(own) == held_out:
        raise DataError(
            "No general row is left to learn along.",
            where=replay.path,
            fix="Give a file of general instructions with answers, or leave data.replay out.",
            code="no_replay_rows",
            param="data.replay.path",
        )
    found = Replay(
        path=replay.path,
        share=replay.share,
        rows=tuple(own[held_out:]),
        held_out=tuple(own[:held_out]),
        rows_read=loaded.rows_read,
    )
    return dataclasses.replace(prepared, replay=found)
