"""What a run says about its training once it is done: what was forgotten, learnt by heart, and hard to learn."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.chat.renderer import Rendered
from tunesmith.evaluate.general import Forgetting, bundled_instructions
from tunesmith.learn.passes import Passes
from tunesmith.learn.step import TreeModel
from tunesmith.record.observer import Observer
from tunesmith.record.parquet import write_parquet
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.pinned_data import PinnedData
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.loop import Outcome, Records, TrainingData
from tunesmith.train.row_losses import hardest
from tunesmith.train.sft import encode
from tunesmith.train.stepping import Stepper
from tunesmith.train.watch import probe_memory

#: Rows that are named because they cost most, and how much more than the median makes a row worth a look.
_HARD_ROWS, _MUCH_HARDER = 10, 3.0
#: Rows that are seen once can hardly be known by heart.
_FEWEST_PASSES = 2


class LookingBack:
    """Measures before training, compares after it.

    Args:
        spec: the resolved spec.
        base: the base; its model has its adapter already, which begins without effect.
        data: the run's rows.
        records: where the events go.
    """

    def __init__(self, spec: TuneSpec, base: Base, data: PinnedData, records: Records) -> None:
        self._spec = spec
        self._model = TreeModel.of(base.loaded.model)
        self._records = records
        count = spec.evaluation.forgetting_rows
        self._is_bundled = not data.general
        rows = data.general[:count] or bundled_instructions(count)
        assert not isinstance(spec.limits.max_tokens, str)
        encoded = encode(rows, base.renderer, spec.limits.max_tokens)
        self._general: list[Rendered] = [sequence for row in encoded for sequence in row]
        self._before = self._general_loss()

    def tell(self, folder: RunFolder, data: TrainingData, outcome: Outcome) -> list[str]:
        """Record what can be said about the training, with the weights that are kept; return the sentences."""
        found = [
            self._tell_forgetting(),
            self._tell_memory(data, outcome),
            self._tell_hard_rows(folder, len(data.train)),
        ]
        return [sentence for sentence in found if sentence is not None]

    def _tell_forgetting(self) -> str | None:
        after = self._general_loss()
        if self._before is None or after is None:
            return None
        found = Forgetting(self._before, after, len(self._general), self._is_bundled)
        self._records.events.add(
            "forgetting", found.message, level="warning" if found.is_forgetting else "info", **found.to_json()
        )
        return found.message

    def _tell_memory(self, data: TrainingData, outcome: Outcome) -> str | None:
        own = outcome.state.rows * (1.0 - data.replay_share)
        if own < _FEWEST_PASSES * len(data.train):
            return None
        found = probe_memory(self._model, data.train, data.validation, self._spec.seed)
        if found is None:
            return None
        unseen = found.validation
        self._records.events.add(
            "memorised",
            found.message,
            level="warning" if found.is_by_heart else "info",
            train_answers=found.train.answer_share,
            train_tokens=found.train.token_share,
            validation_answers=unseen.answer_share if unseen else None,
            validation_tokens=unseen.token_share if unseen else None,
        )
        return found.message

    def _tell_hard_rows(self, folder: RunFolder, own_rows: int) -> str | None:
        """Name the rows that cost most when they were last learnt: they may be wrong."""
        losses = list(self._records.row_losses.rows())
        write_parquet(losses, folder.path / "row_losses.parquet")
        found = hardest([row for row in losses if row["row"] < own_rows], _HARD_ROWS)
        if found is None or self._spec.method.kind == "pretrain":  # windows over documents aren't lines of a file
            return None
        harder = [place for place, loss in enumerate(found.losses) if loss > _MUCH_HARDER * found.median]
        if not harder:
            return None
        lines = [found.rows[place] + 1 for place in harder]
        message = (
            f"{len(lines)} {'row costs' if len(lines) == 1 else 'rows cost'} far more than the others (up to "
            f"{found.losses[0]:.2f} nats a token, the median is {found.median:.2f}) and may be wrong: "
            f"{'line' if len(lines) == 1 else 'lines'} {', '.join(map(str, lines))} of the run's data/train.jsonl."
        )
        self._records.events.add(
            "hard_rows",
            message,
            lines=lines,
            losses=[found.losses[place] for place in harder],
            median=found.median,
            file=str(folder.data / "train.jsonl"),
        )
        return message

    def _general_loss(self) -> float | None:
        """Return the mean loss on the general rows, with the weights as they are."""
        if not self._general:
            return None
        return mean_loss(self._model, self._general, self._spec, self._records.observer)


def mean_loss(model: TreeModel, sequences: Sequence[Rendered], spec: TuneSpec, observer: Observer) -> float:
    """Return the sequences' mean loss in nats a learnt token."""
    assert not isinstance(spec.limits.tokens_per_microbatch, str)
    stepper = Stepper(model, (), Passes(spec.limits.tokens_per_microbatch), lambda *_: None)
    total = len(sequences)
    return stepper.mean_loss(
        sequences, lambda done: observer.progress("measuring general instructions", done, total)
    ).loss
