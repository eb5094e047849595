"""The one training loop, its life cycle: steps, validation, early stopping, checkpoints, resume.

A step's loss is the mean over all learnt tokens of its rows, however it is computed in passes (`stepping.py`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from tunesmith.learn.optimiser import Optimiser
from tunesmith.learn.passes import Passes
from tunesmith.learn.randomness import RANDOM_NAMES, random_state, restore_random_state
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.size import ModelSize
from tunesmith.record.events import EventLog
from tunesmith.record.metrics import MetricsLog
from tunesmith.record.observer import Observer, StepReport
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.batches import epoch_ends, rows_of_steps, with_replay
from tunesmith.train.checkpoints import Checkpoint, CheckpointStore, LoopState
from tunesmith.train.costs import Costs
from tunesmith.train.memory import PeakMemory, give_freed_memory_back, keep_freed_memory, memory_limit_bytes
from tunesmith.train.mixing import Mixture
from tunesmith.train.planner import Planner
from tunesmith.train.rehearsal import Rehearsal, by_step, rehearse
from tunesmith.train.row_losses import RowLossLog, row_means
from tunesmith.train.settings import numbers
from tunesmith.train.sft import Row
from tunesmith.train.stepping import Computed, Stepper, told_when_out_of_memory
from tunesmith.train.validation import Scoring, Validator, check_finite, judge

#: The speed that is shown is the mean over this many steps.
_SPEED_STEPS = 10
#: A plan that takes at most this share of the memory isn't rehearsed; this step corrects it instead.
_COMFORTABLE_SHARE, _MEASURED_STEP = 0.5, 2


@dataclass(frozen=True)
class TrainingData:
    """Rendered rows to learn from, rows whose loss is watched, and how sources share an epoch (None: by their rows).

    `replay` are general rows that are learnt along: `replay_share` of each step's rows.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    mixture: Mixture | None = None
    replay: Sequence[Row] = ()
    replay_share: float = 0.0

    @property
    def learnt(self) -> list[Row]:
        """All rows that steps may hold, the general ones last."""
        return [*self.train, *self.replay]

    def steps(self, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
        """Return the numbers (in `learnt`) of every optimiser step's rows; `batch_size` doesn't count general ones."""
        steps = rows_of_steps(len(self.train), batch_size, epochs, seed, self.mixture)
        return with_replay(steps, len(self.train), len(self.replay), self.replay_share, seed)


@dataclass(frozen=True)
class Outcome:
    """What the loop came to. `last_loss` is the mean over the last tenth of the steps; losses in nats a token."""

    state: LoopState
    steps: int
    last_loss: float
    is_interrupted: bool
    stopped_early: bool


@dataclass(frozen=True)
class Records:
    """Where the loop writes what happens."""

    events: EventLog
    metrics: MetricsLog
    checkpoints: CheckpointStore
    observer: Observer
    row_losses: RowLossLog


class Loop:
    """Trains one adapter on one model.

    Args:
        model: computes losses.
        adapter: what is trained; it stands on the model already.
        data: rendered rows.
        spec: the resolved spec.
        records: where steps, validations and checkpoints go.
        should_stop: asked after each step; True writes a checkpoint and ends the loop as interrupted.
        scoring: scores answers at each validation and so says which weights are best, in place of the loss.
        at_epoch_end: called with the step after each pass over the rows but the last, once it is validated and saved;
            again for the same step where a run is resumed right there.
    """

    def __init__(
        self,
        model: TreeModel,
        adapter: Adapter,
        data: TrainingData,
        spec: TuneSpec,
        records: Records,
        should_stop: Callable[[], bool],
        scoring: Scoring | None = None,
        at_epoch_end: Callable[[int], object] | None = None,
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._data = data
        self._spec = spec
        self._records = records
        self._should_stop = should_stop
        keep_freed_memory()
        self._validator = Validator(data.validation, scoring, records.events, records.metrics, records.observer)
        batch_size, epochs, self._validate_every = numbers(spec)
        assert not isinstance(spec.limits.tokens_per_microbatch, str)
        self._schedule = data.steps(batch_size, epochs, spec.seed)
        self._rows = data.learnt
        self._at_epoch_end = at_epoch_end
        self._epoch_ends = epoch_ends(len(data.train), batch_size, epochs) if at_epoch_end else frozenset()
        groups = adapter.parameter_groups()
        self._optimiser = Optimiser(groups, spec.optimisation, len(self._schedule))
        passes = Passes(spec.limits.tokens_per_microbatch)
        parameters = [parameter for group in groups for parameter in group.parameters]
        self._stepper = Stepper(model, parameters, passes, self._note_replanned, spec.method)
        self._state = LoopState(passes)
        self._is_fresh = True
        self._recent: deque[tuple[int, float]] = deque(maxlen=_SPEED_STEPS)
        self._to_measure: tuple[Planner, PeakMemory] | None = None
        #: What corrects the plan: a rehearsal, or an early step.
        self.measured: Rehearsal | None = None

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same spec, data and library versions."""
        optimiser = dict(checkpoint.optimiser)
        random = {name: optimiser.pop(name) for name in RANDOM_NAMES if name in optimiser}
        restore_random_state(random, self._stepper.device)
        self._adapter.load_tensors(checkpoint.adapter, where=f"step {checkpoint.state.step}")
        if optimiser:
            self._optimiser.load_tensors(optimiser)
        self._stepper.use(checkpoint.state.passes)
        self._state = checkpoint.state
        self._is_fresh = False

    def rehearse(self, size: ModelSize, peak: PeakMemory) -> None:
        """Choose passes that fit the memory, by computing the longest step once for real; nothing else changes.

        Where the plan leaves half of the memory free there is nothing to find out: training begins at once, and its
        first steps correct the plan. A resumed run goes on as it began.

        Args:
            size: the base's.
            peak: measures this process's memory.

        Raises:
            RunError: nothing fits (`out_of_memory`).
        """
        if not self._is_fresh:
            return
        device = self._stepper.device
        costs = Costs(size, self._spec, device)
        planner = Planner(costs, self._rows, self._data.validation, self._schedule, self._validate_every)
        limit_bytes = memory_limit_bytes(self._spec.limits.memory_bytes, device)
        self._stepper.use(costs.first_passes())
        if planner.memory(self._stepper.passes).total <= _COMFORTABLE_SHARE * limit_bytes:
            self._to_measure = planner, peak
            self._stepper.prepare()
            return
        model = self._model.model
        model.train()
        self._note_measured(rehearse(self._stepper, planner, limit_bytes, peak))
        model.eval()

    def run(self) -> Outcome:
        """Train to the end, to an early stop, or until asked to stop. The best weights are left in a checkpoint.

        Raises:
            RunError: a loss or a gradient is not a finite number (`non_finite_loss`), or memory ran out and smaller
                passes are of no use (`out_of_memory`); the last checkpoint is whole and finite.
            StorageError: the disk has no room for checkpoints, or one can't be written; the earlier ones are whole.
        """
        model = self._model.model
        model.train()
        self._records.checkpoints.check_room(self._checkpoint_bytes(), keep=self._spec.limits.keep_checkpoints)
        interrupted = stopped_early = False
        if self._is_fresh:
            self._validate_and_save()
        else:
            self._tell_epoch_end()
        while self._state.step < len(self._schedule):
            patience = self._spec.optimisation.patience
            stopped_early = bool(patience) and self._state.worse_validations >= patience
            if stopped_early:
                break
            self._step(self._schedule[self._state.step])
            self._measure_plan()
            is_last = self._state.step == len(self._schedule)
            if self._validates_after(self._state.step):
                self._validate_and_save()
                self._tell_epoch_end()
            if not is_last and self._should_stop():
                interrupted = True
                self._save()
                break
        model.eval()
        self._stepper.rest()
        give_freed_memory_back()
        return Outcome(self._state, len(self._schedule), self._last_loss(), interrupted, stopped_early)

    def _validates_after(self, step: int) -> bool:
        return step == len(self._schedule) or step % self._validate_every == 0 or step in self._epoch_ends

    def _tell_epoch_end(self) -> None:
        if self._at_epoch_end is not None and self._state.step in self._epoch_ends:
            self._at_epoch_end(self._state.step)

    def _measure_plan(self) -> None:
        """Correct the plan by an early step, if no rehearsal did; the very first is slower than the others."""
        if self._to_measure is None or self._state.step < min(_MEASURED_STEP, len(self._schedule)):
            return
        planner, peak = self._to_measure
        self._to_measure = None
        sequences = [sequence for row in self._schedule[self._state.step - 1] for sequence in self._rows[row]]
        self._note_measured(by_step(planner, self._stepper.passes, sequences, self._recent[-1][1], peak))

    def _note_measured(self, found: Rehearsal) -> None:
        self.measured = found
        self._records.events.add("plan_measured", found.sentence, **found.to_json())

    def _last_loss(self) -> float:
        """Return the mean loss of the last tenth of the steps, also of those that were taken before a resume."""
        wanted = max(1, len(self._schedule) // 10)
        losses = deque((row["loss"] for row in self._records.metrics.rows() if row.get("loss") is not None), wanted)
        return sum(losses) / len(losses) if losses else math.nan

    def _checkpoint_bytes(self) -> int:
        """Return about how large a checkpoint gets."""
        adapter = sum(tensor.nbytes for tensor in self._adapter.tensors().values())
        eight_bits = self._spec.optimisation.optimiser == "adamw_8bit"
        trained = sum(parameter.numel() for group in self._adapter.parameter_groups() for parameter in group.parameters)
        return adapter + trained * (2 if eight_bits else 8)

    def _step(self, row_numbers: Sequence[int]) -> None:
        """Take one optimiser step."""
        started = time.perf_counter()
        number = self._state.step + 1
        rows = [self._rows[row] for row in row_numbers]
        sequences = [sequence for row in rows for sequence in row]
        computed = self._stepper.gradients(sequences, f"step {number}")
        check_finite(computed.loss, f"The loss became {computed.loss} at step {number}")
        norm = self._stepper.gradient_norm()
        check_finite(norm, f"The gradient's length became {norm} at step {number}")
        with told_when_out_of_memory(f"the end of step {number}", self._stepper.passes, self._stepper.device):
            rate = self._optimiser.step(self._state.step)
        seconds = time.perf_counter() - started
        self._recent.append((computed.tokens, seconds))
        self._state = replace(
            self._state,
            step=number,
            rows=self._state.rows + len(row_numbers),
            tokens=self._state.tokens + computed.tokens,
            seconds=self._state.seconds + seconds,
            step_seconds=self._state.step_seconds + seconds,
        )
        self._records.row_losses.add(number, row_numbers, row_means(rows, computed.sequence_losses))
        self._report(computed, rate)

    def _report(self, computed: Computed, rate: float) -> None:
        speed = sum(tokens for tokens, _ in self._recent) / sum(seconds for _, seconds in self._recent)
        state = self._state
        self._records.metrics.add(
            state.step,
            loss=computed.loss,
            accuracy=computed.accuracy,
            learning_rate=rate,
            tokens_per_second=speed,
        )
        left = len(self._schedule) - state.step
        self._records.observer.step(
            StepReport(
                step=state.step,
                steps=len(self._schedule),
                loss=computed.loss,
                learning_rate=rate,
                tokens=state.tokens,
                tokens_per_second=speed,
                remaining_seconds=state.seconds / state.step * left,
                validates=self._validates_after(state.step),
                accuracy=computed.accuracy,
            )
        )

    def _validate_and_save(self) -> None:
        """Measure what the weights are worth, note whether they are the best so far, write a checkpoint."""
        started = time.perf_counter()
        found = self._validator.validate(self._stepper, self._state.step)
        seconds = self._state.seconds + time.perf_counter() - started
        self._state = judge(replace(self._state, seconds=seconds), found)
        self._save()

    def _save(self) -> None:
        self._records.metrics.sync()
        self._records.row_losses.sync()
        optimiser = {**self._optimiser.tensors(), **random_state(self._stepper.device)}
        self._state = replace(self._state, passes=self._stepper.passes)
        adapter = self._adapter.tensors()
        for name, tensor in adapter.items():
            check_finite(
                float(tensor.abs().amax()), f"The weights {name} stopped being finite by step {self._state.step}"
            )
        self._records.checkpoints.save(
            Checkpoint(self._state, adapter, optimiser), keep=self._spec.limits.keep_checkpoints
        )

    def _note_replanned(self, old: Passes, new: Passes, failure: str) -> None:
        self._records.events.add(
            "replanned",
            f"Memory ran out with {old}; going on with {new}.",
            level="warning",
            step=self._state.step + 1,
            failure=failure,
            old=asdict(old),
            new=asdict(new),
        )
