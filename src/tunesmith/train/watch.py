"""Does the model learn, or learn by heart? Signs of overfitting, from losses and from what it writes by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.chat.renderer import Rendered
from tunesmith.learn.greedy import greedy_hits
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.train.packing import microbatches
from tunesmith.train.sft import Row

#: The validation loss has risen when it is this share above its lowest.
_RISEN = 0.02
#: Answers shorter than this are often right without being known by heart.
_MIN_ANSWER_TOKENS = 8
#: Tokens and rows that each side of the probe may take.
_PROBE_TOKENS, _PROBE_ROWS = 1500, 64
#: Training rows are known by heart when this share of their answers is written word for word, and so much more of them
#: than of the validation rows' answers; fewer answers than that tell nothing.
_KNOWN, _KNOWN_MORE, _FEWEST_ANSWERS = 0.5, 0.3, 8


@dataclass(frozen=True, slots=True)
class Overfitting:
    """The validation loss has risen while the training loss fell. Losses in nats a token.

    Attributes:
        best_step: the step with the lowest validation loss.
        best: that loss.
        now: the validation loss at the newest validation.
        train_before: mean training loss before the best validation, since the one before it.
        train_now: mean training loss since the best validation.
    """

    best_step: int
    best: float
    now: float
    train_before: float
    train_now: float

    @property
    def message(self) -> str:
        """A sentence for people, and what to do."""
        return (
            f"The validation loss has risen from {self.best:.3f} (step {self.best_step}) to {self.now:.3f}, while the "
            f"training loss fell from {self.train_before:.3f} to {self.train_now:.3f}: the model learns its rows by "
            "heart. The best weights are kept. More rows help most; else fewer epochs, a lower learning rate, "
            "adapter.dropout or method.embedding_noise."
        )


def find_overfitting(metrics: Iterable[Mapping[str, Any]]) -> Overfitting | None:
    """Return the sign of overfitting that a run's metrics show at their newest validation, if any.

    Args:
        metrics: rows of `MetricsLog`, in order.
    """
    validations: list[tuple[int, float]] = []
    losses: list[tuple[int, float]] = []
    for row in metrics:
        if row.get("loss") is not None:
            losses.append((int(row["step"]), float(row["loss"])))
        if row.get("validation_loss") is not None:
            validations.append((int(row["step"]), float(row["validation_loss"])))
    if len(validations) < 3:
        return None
    place = min(range(len(validations)), key=lambda index: validations[index][1])
    best_step, best = validations[place]
    now = validations[-1][1]
    since = validations[place - 1][0] if place else -1
    before = [loss for step, loss in losses if since < step <= best_step]
    after = [loss for step, loss in losses if step > best_step]
    if not before or not after or now <= best * (1 + _RISEN):
        return None
    found = Overfitting(best_step, best, now, sum(before) / len(before), sum(after) / len(after))
    return found if found.train_now < found.train_before else None


@dataclass(frozen=True, slots=True)
class Recall:
    """What a model writes by itself of some answers: shares of tokens and of whole answers that it gets right."""

    answers: int
    token_share: float
    answer_share: float


@dataclass(frozen=True, slots=True)
class Memory:
    """How well training rows are known, and rows that were never learnt from (None without such rows)."""

    train: Recall
    validation: Recall | None

    @property
    def is_by_heart(self) -> bool:
        """Whether the difference says that rows were learnt by heart."""
        unseen = self.validation
        if unseen is None or min(self.train.answers, unseen.answers) < _FEWEST_ANSWERS:
            return False
        known = self.train.answer_share
        return known >= _KNOWN and known - unseen.answer_share >= _KNOWN_MORE

    @property
    def message(self) -> str:
        """A sentence for people."""
        told = f"Left to itself, the model writes {self.train.answer_share:.0%} of the training answers word for word"
        if self.validation is None:
            return f"{told}."
        told += f", and {self.validation.answer_share:.0%} of the validation answers"
        if not self.is_by_heart:
            return f"{told}."
        return (
            f"{told}: it knows its rows by heart. What is in them may come out word for word; names, numbers and keys "
            "too. Fewer epochs and more rows help."
        )


def probe_memory(model: TreeModel, train: Sequence[Row], validation: Sequence[Row], seed: int) -> Memory | None:
    """Return how much of some training and validation answers the model writes by itself, word for word.

    A greedy answer equals the reference exactly if each of its tokens is the likeliest one after the reference's
    beginning, so one forward pass over some rows of each side is enough, without generating anything. None where the
    training answers are too short to tell (fewer than eight tokens).
    """
    learnt = _recall(model, _some(train, seed))
    return None if learnt is None else Memory(learnt, _recall(model, _some(validation, seed)))


def _some(rows: Sequence[Row], seed: int) -> list[Rendered]:
    """Draw rows with long answers, as many as the probe may take."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[Rendered] = []
    tokens = 0
    for number in order:
        sequences = [s for s in rows[number] if s.learnt_tokens >= _MIN_ANSWER_TOKENS]
        tokens += sum(len(sequence.token_ids) for sequence in sequences)
        if len(chosen) >= _PROBE_ROWS or (chosen and tokens > _PROBE_TOKENS):
            break
        chosen += sequences
    return chosen


def _recall(model: TreeModel, sequences: Sequence[Rendered]) -> Recall | None:
    if not sequences:
        return None
    was_training = model.model.training
    model.model.eval()
    hits = targets = whole = 0
    try:
        for part in microbatches(sequences, _PROBE_TOKENS):
            tree = build_tree(part)
            right = greedy_hits(model, tree).long()
            hit, wanted = tree.by_sequence(right).tolist(), tree.by_sequence(torch.ones_like(right)).tolist()
            hits, targets = hits + sum(hit), targets + sum(wanted)
            whole += sum(one == other for one, other in zip(hit, wanted, strict=True))
    finally:
        model.model.train(was_training)
    return Recall(len(sequences), hits / targets, whole / len(sequences))
