"""What a finished run gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.examples import Conversation
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.verdict import Verdict
from tunesmith.models.versions import ModelVersion
from tunesmith.specs.results import TuneFigures


@dataclass(frozen=True)
class RunResult:
    """A finished run: its figures, its verdict, the registered version, and what the proof saw.

    `arms` holds the untuned arms first and the tuned model last; it is empty when there were no test rows.
    """

    figures: TuneFigures
    verdict: Verdict
    version: ModelVersion
    run_folder: Path
    arms: Sequence[ArmResult]
    test_rows: Sequence[Conversation]

    @property
    def report_html(self) -> Path:
        """The report for people."""
        return self.run_folder / "report.html"
