"""`optimisation.early_stop_on: score`: answers to the validation rows, with the weights as they are in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import SpecError
from tunesmith.evaluate.arms import as_is
from tunesmith.learn.randomness import random_state, restore_random_state
from tunesmith.record.observer import Observer
from tunesmith.runs.pinned_data import PinnedData
from tunesmith.runs.proof import Proof
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import PretrainSpec, TuneSpec
from tunesmith.train.validation import Scoring

_ARM = as_is("validation", "the model in training")


class _Aside(Observer):
    """Shows the progress of answering as part of the validation."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def progress(self, what: str, done: int, total: int) -> None:  # noqa: ARG002  (it is all validating)
        self._observer.progress("validating", done, total)


def validation_scoring(spec: TuneSpec, base: Base, data: PinnedData, observer: Observer) -> Scoring | None:
    """Return how a validation scores answers, or None where the loss decides.

    The score is the proof's measure over all validation rows. The adapter stays beside the weights, and each
    measurement has an engine of its own: no keys and values of older weights are left.

    `check_score_is_possible` has said that there is something to answer.
    """
    if spec.optimisation.early_stop_on != "score":
        return None
    proof = Proof(base.loaded, base.renderer, data.validation, data.train, spec.evaluation, _Aside(observer))
    model, device = base.loaded.model, base.loaded.device

    def measure() -> float:
        random, was_training = random_state(device), model.training
        model.eval()
        try:
            return proof.measure_arm(_ARM).score.value
        finally:
            model.train(was_training)
            restore_random_state(random, device)

    return Scoring(proof.measure.name, measure)


def check_score_is_possible(spec: TuneSpec, validation: Sequence[Any]) -> None:
    """Refuse a run that is to choose its weights by a score that can't be measured.

    Raises:
        SpecError: documents have no answers, or there are no validation rows.
    """
    if spec.optimisation.early_stop_on != "score" or (validation and not isinstance(spec.method, PretrainSpec)):
        return
    reason = (
        "Without validation rows there is nothing to score."
        if not validation
        else "Documents have no answers that could be scored."
    )
    raise SpecError(
        reason,
        fix="Set optimisation.early_stop_on to `loss`, or set validation rows aside (data.validation_fraction).",
        param="optimisation.early_stop_on",
        code="nothing_to_score",
    )
