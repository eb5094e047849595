"""What a validation measures, and which weights are best by it: the lowest loss, or the best score of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.chat.renderer import Rendered
from tunesmith.errors import RunError
from tunesmith.record.events import EventLog
from tunesmith.record.metrics import MetricsLog
from tunesmith.record.observer import Observer
from tunesmith.train.checkpoints import LoopState
from tunesmith.train.sft import Row
from tunesmith.train.stepping import Computed, Stepper
from tunesmith.train.watch import find_overfitting

_OVERFITTING = "overfitting"


@dataclass(frozen=True, slots=True)
class Scoring:
    """A score of the model's answers as its weights are now: `measure` returns it, from 0 to 1, more is better.

    `measure` leaves weights, random state and the model's mode as they were.
    """

    name: str
    measure: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Validation:
    """What one validation measured: the loss in nats a token, the score. None: not measured."""

    loss: float | None = None
    score: float | None = None


class Validator:
    """Measures validations and records them.

    Args:
        rows: rows that aren't learnt from; without any, there is no loss.
        scoring: also scores answers; what it says then decides.
        events: gets `validation`, and `overfitting` at most once.
        metrics: gets `validation_loss`, `validation_accuracy` and `validation_score`.
        observer: sees progress.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        scoring: Scoring | None,
        events: EventLog,
        metrics: MetricsLog,
        observer: Observer,
    ) -> None:
        self._sequences: list[Rendered] = [sequence for row in rows for sequence in row]
        self._scoring = scoring
        self._events = events
        self._metrics = metrics
        self._observer = observer

    def validate(self, stepper: Stepper, step: int) -> Validation:
        """Measure and record what the weights after `step` steps are worth.

        Raises:
            RunError: the loss isn't a finite number (`non_finite_loss`), or memory ran out (`out_of_memory`).
        """
        found = self._computed(stepper)
        if found is None:
            return Validation()
        loss = found.loss
        check_finite(loss, f"The validation loss became {loss} after step {step}")
        when = f"after step {step}" if step else "before training"
        figures: dict[str, Any] = {"validation_loss": loss, "validation_accuracy": found.accuracy}
        if self._scoring is None:
            self._metrics.add(step, **figures)
            self._events.add("validation", f"Validation loss {loss:.4f} {when}.", step=step, **figures)
            self._watch(step)
            return Validation(loss)
        score = self._scoring.measure()
        figures["validation_score"] = score
        self._metrics.add(step, **figures)
        self._events.add(
            "validation", f"Validation loss {loss:.4f}, {self._scoring.name} {score:.3f} {when}.", step=step, **figures
        )
        self._watch(step)
        return Validation(loss, score)

    def _computed(self, stepper: Stepper) -> Computed | None:
        """Return what the validation rows' learnt tokens come to, or None without such rows."""
        total = len(self._sequences)
        if not total:
            return None
        return stepper.mean_loss(self._sequences, lambda done: self._observer.progress("validating", done, total))

    def _watch(self, step: int) -> None:
        """Speak up once when the model begins to learn its rows by heart."""
        found = find_overfitting(self._metrics.rows())
        if found is None or any(event.type == _OVERFITTING for event in self._events.events()):
            return
        self._events.add(
            _OVERFITTING,
            found.message,
            level="warning",
            step=step,
            best_step=found.best_step,
            best_validation_loss=found.best,
            validation_loss=found.now,
            train_loss_before=found.train_before,
            train_loss=found.train_now,
        )


def judge(state: LoopState, found: Validation) -> LoopState:
    """Return the state with the best step, its figures, and how many validations in a row weren't the best.

    A score decides where there is one; among equal scores the lower loss does. Without any figure the newest weights
    are the best known.
    """
    if found.loss is None and found.score is None:
        return replace(state, best_step=state.step)
    if _is_better(state, found):
        return replace(state, best_step=state.step, best_loss=found.loss, best_score=found.score, worse_validations=0)
    return replace(state, worse_validations=state.worse_validations + 1)


def _is_better(state: LoopState, found: Validation) -> bool:
    if found.score is not None and found.score != state.best_score:
        return state.best_score is None or found.score > state.best_score
    return found.loss is not None and (state.best_loss is None or found.loss < state.best_loss)


def check_finite(value: float, told: str) -> None:
    """Refuse to go on from a number that isn't finite.

    Raises:
        RunError: it isn't (`non_finite_loss`).
    """
    if not math.isfinite(value):
        raise RunError(
            f"{told}: training has diverged.",
            fix="Lower optimisation.learning_rate (to a third, say) and tune again.",
            code="non_finite_loss",
        )
