"""Who watches while something works: doors draw progress from these calls, files keep what lasts."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.record.events import Event


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step of `steps`: `loss` in nats a learnt token; `tokens` counts the rows' tokens so far.

    `tokens_per_second` is over the last steps, `remaining_seconds` an estimate of the training's end. After a step that
    `validates`, a validation follows. `accuracy` is the share of learnt tokens than which no other was likelier.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    remaining_seconds: float
    validation_loss: float | None = None
    validates: bool = False
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """`done` of `total` answers to a file of prompts are finished.

    `tokens_per_second` counts generated tokens since the start, `remaining_seconds` is an estimate.
    """

    done: int
    total: int
    tokens_per_second: float
    remaining_seconds: float


class Observer:
    """Watches and does nothing; override what matters."""

    def event(self, event: Event) -> None:
        """Something happened that the run's record keeps."""

    def step(self, report: StepReport) -> None:
        """An optimiser step is done."""

    def answers(self, report: AnswersReport) -> None:
        """An answer to a file of prompts is finished."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of some work named `what` (a phrase for people) are finished."""
