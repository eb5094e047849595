"""A run from its spec to a registered model: prepare, plan, measure the base, train, prove, register, report.

The same code starts a run and resumes one. A resumed run goes on from its newest whole checkpoint, with its own copy of
the rows; the untuned base is measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from tunesmith.errors import RunError, RunInterrupted, StorageError, TunesmithError
from tunesmith.evaluate.arms import Arm, as_is
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.verdict import decide
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.versions import ModelVersion
from tunesmith.record.events import EventLog
from tunesmith.record.home import Home
from tunesmith.record.metrics import MetricsLog
from tunesmith.record.observer import Observer
from tunesmith.record.parquet import write_parquet
from tunesmith.runs.architecture import note_architecture
from tunesmith.runs.finish import Finished, Weights, finish, register_checkpoint
from tunesmith.runs.folder import JobOrder, RunFolder
from tunesmith.runs.looking_back import LookingBack
from tunesmith.runs.perplexity import PerplexityProof
from tunesmith.runs.pinned_data import PinnedData, load_pinned, pin
from tunesmith.runs.preview import preview_tokens
from tunesmith.runs.proof import Proof
from tunesmith.runs.rate import with_found_rate
from tunesmith.runs.result import RunResult
from tunesmith.runs.stop import StopWish, stop_on_signals
from tunesmith.runs.validation_score import check_score_is_possible, validation_scoring
from tunesmith.runs.workshop import Base, Workshop
from tunesmith.specs.tune import PretrainSpec, TuneSpec
from tunesmith.train.checkpoints import CheckpointStore
from tunesmith.train.loop import Loop, Outcome, Records
from tunesmith.train.memory import PeakMemory
from tunesmith.train.plan import Plan
from tunesmith.train.row_losses import RowLossLog

_BASE_ARM = as_is("the base", "the untuned base with the rows' own prompt")
_TUNED_ARM = as_is("the tuned model", "the tuned model with the rows' own prompt")


class Snapshots:
    """Wants weights that can be asked while a run goes on; this one wants none."""

    #: Whether weights are wanted at the end of each pass over the rows.
    at_epoch_ends = False

    def wants_at_stop(self) -> bool:
        """Whether weights are wanted as the run stops before its end."""
        return False

    def taken(self, step: int, version: ModelVersion) -> None:
        """The weights after a step are registered. The same ones may come again after a resume."""


def start(
    spec: TuneSpec,
    home: Home,
    observer: Observer,
    *,
    untuned: Sequence[Arm] = (),
    order: JobOrder | None = None,
    snapshots: Snapshots | None = None,
) -> RunResult:
    """Start a run and work on it to its end.

    Args:
        spec: what is asked.
        home: where everything is kept.
        observer: sees events, steps and progress.
        untuned: ways to ask the untuned base, besides its rows' own prompt, that the verdict compares with.
        order: the job that it works for, if it does.
        snapshots: wants weights before the end.

    Raises:
        UserError: data, base or disk can't be used; nothing is registered.
        RunInterrupted: the user stopped it; `resume` goes on.
    """
    home.check_writable()
    base = Base.load(spec, home)
    resolved, prepared = base.prepare(spec)
    check_score_is_possible(resolved, prepared.validation)
    folder = RunFolder.create(resolved, home, order)
    with _ending_noted(folder):
        data = pin(prepared, folder.data)
        with _records(folder, observer) as records:
            return _Execution(folder, resolved, data, base, records, snapshots).run(home, untuned)


def resume(
    name: str,
    home: Home,
    observer: Observer,
    *,
    untuned: Sequence[Arm] = (),
    snapshots: Snapshots | None = None,
) -> RunResult:
    """Go on with a run that was stopped or cut off, from its newest whole checkpoint.

    Raises:
        RunError: there is no such run, it has finished, or its files were changed.
        RunInterrupted: the user stopped it again.
    """
    folder = RunFolder.find(name, home)
    view = folder.view()
    if view.state == "succeeded":
        raise RunError(
            "This run has finished; there is nothing to resume.",
            where=folder.id,
            fix=f"Its model: {view.model}",
            code="already_finished",
        )
    spec = folder.spec()
    data = load_pinned(folder.data)
    base = Base.load(spec, home)
    folder.update(state="running", error=None, code=None)
    with _ending_noted(folder), _records(folder, observer) as records:
        return _Execution(folder, spec, data, base, records, snapshots).run(home, untuned)


class _Execution:
    """One attempt at a run."""

    def __init__(
        self,
        folder: RunFolder,
        spec: TuneSpec,
        data: PinnedData,
        base: Base,
        records: Records,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._data = data
        self._base = base
        self._records = records
        self._events = records.events
        self._snapshots = snapshots or Snapshots()
        self._peak = PeakMemory(base.loaded.device)

    def run(self, home: Home, untuned: Sequence[Arm]) -> RunResult:
        """Work to the end."""
        folder, data = self._folder, self._data
        self._events.add("run_started", f"Run {folder.id}.", run=folder.id, folder=str(folder.path))
        tokens = preview_tokens(data.train, self._base.renderer)
        self._events.add("data_prepared", _data_sentence(data), report=data.report, tokens=tokens)
        if self._base.renderer.is_plain:
            self._events.add(
                "plain_template",
                "This base has no chat template; roles are written as headings (### user:). Ask it the same way.",
                level="warning",
            )
        workshop = self._base.workshop(self._spec, data.train, data.validation, data.replay)
        plan = workshop.plan()
        self._events.add("plan", f"{plan.steps} steps of {plan.batch_size} rows.", **plan.to_json())
        note_architecture(self._base.loaded, self._spec.adapter, self._events)
        evaluation = self._spec.evaluation
        # One arm after the other on the same weights: first as they are, later with the adapter folded in.
        loaded, renderer, observer = self._base.loaded, self._base.renderer, self._records.observer
        proof: Proof | PerplexityProof
        if isinstance(self._spec.method, PretrainSpec):
            proof = PerplexityProof(loaded, renderer, data.test, self._spec, observer)
        else:
            proof = Proof(loaded, renderer, data.test, data.train, evaluation, observer)
        arms = self._measure(proof, [*untuned, *([_BASE_ARM] if evaluation.compare_base else [])])
        adapter, outcome, plan, notes = self._train(workshop, plan, home)
        adapter.settle()
        arms += self._measure(proof, [_TUNED_ARM])
        result = finish(
            Finished(
                folder=folder,
                spec=self._spec,
                data=data,
                test_rows=proof.rows,
                base=self._base,
                plan=plan,
                adapter=adapter,
                outcome=outcome,
                notes=notes,
                arms=arms,
                verdict=decide(arms[-1], arms[:-1], confidence=evaluation.confidence) if arms else None,
                peak_memory_bytes=self._peak.highest(),
                metrics=list(self._records.metrics.rows()),
            ),
            home,
        )
        folder.update(state="succeeded", model=result.version.name, sentence=result.verdict.sentence)
        self._events.add("run_finished", result.verdict.sentence, model=result.version.name)
        return result

    def _measure(self, proof: Proof | PerplexityProof, arms: Sequence[Arm]) -> list[ArmResult]:
        """Measure arms on the test rows, if there are any."""
        results = [proof.measure_arm(arm) for arm in arms] if self._data.test else []
        for result in results:
            figures = {key: value for key, value in result.to_json().items() if key != "row_scores"}
            sentence = f"{result.measure.name} of {result.name}: {result.score_as_read.value:.3f}."
            self._events.add("evaluation", sentence, **figures)
        return results

    def _train(self, workshop: Workshop, plan: Plan, home: Home) -> tuple[Adapter, Outcome, Plan, list[str]]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns:
            The adapter with its best weights, what the loop came to, the plan as measured, and what people should know
            about the training.

        Raises:
            RunInterrupted: the user stopped it.
        """
        model = self._base.loaded.model
        torch.manual_seed(self._spec.seed)
        adapter = self._base.add_adapter(self._spec.adapter)
        wish, rows = StopWish(), workshop.data
        looking_back = LookingBack(self._spec, self._base, self._data, self._records)
        self._spec = with_found_rate(self._spec, self._base, adapter, rows, plan.passes, self._folder, self._records)
        scoring = validation_scoring(self._spec, self._base, self._data, self._records.observer)

        def snapshot(step: int) -> None:
            weights = Weights(self._folder, self._spec, self._data, self._base, adapter)
            self._snapshots.taken(step, register_checkpoint(weights, step, home))

        at_epoch_end = snapshot if self._snapshots.at_epoch_ends else None
        loop = Loop(TreeModel.of(model), adapter, rows, self._spec, self._records, wish, scoring, at_epoch_end)
        self._go_on(loop)
        loop.rehearse(self._base.size, self._peak)
        with stop_on_signals(wish):
            outcome = loop.run()
        step = outcome.state.step
        if outcome.is_interrupted:
            self._events.add("interrupted", f"Stopped after step {step}.", step=step)
            if self._snapshots.wants_at_stop():
                snapshot(step)
            raise RunInterrupted(self._folder.id, step)
        best = self._records.checkpoints.load(outcome.state.best_step)
        adapter.load_tensors(best.adapter, where=str(self._folder.checkpoints))
        write_parquet(list(self._records.metrics.rows()), self._folder.path / "metrics.parquet")
        notes = looking_back.tell(self._folder, rows, outcome)
        return adapter, outcome, plan.corrected(loop.measured) if loop.measured else plan, notes

    def _go_on(self, loop: Loop) -> None:
        """Take over the newest whole checkpoint, and forget what was recorded after it."""
        checkpoints = self._records.checkpoints
        newest = checkpoints.newest()
        for damage in checkpoints.damaged:
            self._events.add("damaged_checkpoint", f"{damage} The one before is used.", level="warning")
        step = newest.state.step if newest else 0
        self._events.truncate_after(step)
        self._records.metrics.truncate_after(step)
        self._records.row_losses.truncate_after(step)
        if newest is not None:
            loop.resume(newest)
            self._events.add("run_resumed", f"Going on after step {step}.", folder=str(self._folder.path))


@contextmanager
def _records(folder: RunFolder, observer: Observer) -> Iterator[Records]:
    """Open the run's files."""
    with (
        EventLog(folder.events_file, observer.event) as events,
        MetricsLog(folder.metrics_file) as metrics,
        RowLossLog(folder.row_losses_file) as row_losses,
    ):
        yield Records(events, metrics, CheckpointStore(folder.checkpoints), observer, row_losses)


@contextmanager
def _ending_noted(folder: RunFolder) -> Iterator[None]:
    """Note in the run's status how it ended, if not well."""
    try:
        yield
    except (RunInterrupted, KeyboardInterrupt) as error:
        folder.update(state="interrupted", error=str(error) or "Interrupted.")
        raise
    except BaseException as error:
        message = str(error) if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        with suppress(StorageError):  # on a full disk; what went wrong matters more than its note
            folder.update(state="failed", error=message, code=getattr(error, "code", None))
        raise


def _data_sentence(data: PinnedData) -> str:
    report: dict[str, Any] = data.report
    unit = "documents" if report["format"] == "documents" else "rows"
    return (
        f"{report['rows']} {unit}: {len(data.train)} to learn from, {len(data.validation)} to validate, "
        f"{len(data.test)} locked for the test, {report['dropped']} dropped."
    )
