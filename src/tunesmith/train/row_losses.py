"""What each row cost when it was learnt: `row_losses.jsonl`, from which bad rows can be found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.record.step_log import StepLog
from tunesmith.train.sft import Row

#: Digits of a loss that are kept.
_DIGITS = 5


class RowLossLog(StepLog):
    """Appends each step's rows and their mean losses (nats a learnt token) to a file, a line for each step.

    A line is `{"step": 7, "rows": [12, 3], "losses": [0.81, 2.4]}`; rows count the training rows from 0, in the order
    of the run's `data/train.jsonl`. As with `MetricsLog`, lines reach the disk for certain with `sync`.
    """

    def add(self, step: int, rows: Sequence[int], losses: Sequence[float]) -> None:
        """Record what the rows of step `step` cost.

        Raises:
            StorageError: the disk is full; the file ends with the step before.
        """
        kept = [float(f"{loss:.{_DIGITS}g}") for loss in losses]
        self._lines.append({"step": step, "rows": list(rows), "losses": kept}, durable=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping for each row of each step: `step`, `row`, `loss`."""
        for line in self._lines.rows():
            for row, loss in zip(line["rows"], line["losses"], strict=True):
                yield {"step": line["step"], "row": row, "loss": loss}


def row_means(rows: Sequence[Row], sequence_losses: Sequence[float]) -> list[float]:
    """Return each row's mean loss over its learnt tokens.

    Args:
        rows: rows of one or more sequences.
        sequence_losses: the sum of the losses of each sequence, row after row.
    """
    left = iter(sequence_losses)
    return [sum(next(left) for _ in row) / sum(sequence.learnt_tokens for sequence in row) for row in rows]


@dataclass(frozen=True, slots=True)
class HardRows:
    """The rows that cost most when they were last learnt.

    Attributes:
        rows: row numbers from 0, the highest loss first.
        losses: their losses, in nats a learnt token.
        median: the median over all rows.
    """

    rows: tuple[int, ...]
    losses: tuple[float, ...]
    median: float


def hardest(rows: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]], count: int) -> HardRows | None:
    """Return the `count` rows with the highest loss in their last pass; None without any row."""
    last: dict[int, float] = {
        int(row["row"]): float(row["loss"]) for row in rows if row["loss"] is not None
    }  # a later pass takes the earlier one's place
    if not last:
        return None
    top = sorted(last, key=lambda row: (-last[row], row))[:count]
    return HardRows(tuple(top), tuple(last[row] for row in top), statistics.median(last.values()))
