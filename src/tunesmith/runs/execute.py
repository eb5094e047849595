"""A run from its spec to a registered model: prepare, plan, train, prove, register, report.

The same code starts a run and resumes one: what a resumed run finds in its folder it doesn't do again.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation
from tunesmith.errors import DataError, RunError, RunInterrupted, TunesmithError
from tunesmith.evaluate.arms import Arm, as_is
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.verdict import decide
from tunesmith.learn.step import TreeModel
from tunesmith.models.load import LoadedModel, load_base
from tunesmith.models.lora import LoraAdapter, add_lora, merge_lora
from tunesmith.models.resolve import resolve_base
from tunesmith.models.size import ModelSize, model_size
from tunesmith.prepare.lengths import RowLength, limit_lengths
from tunesmith.prepare.pipeline import prepare
from tunesmith.prepare.prepared import PreparedData
from tunesmith.record.events import EventLog
from tunesmith.record.home import Home
from tunesmith.record.metrics import MetricsLog
from tunesmith.record.observer import Observer
from tunesmith.record.parquet import write_parquet
from tunesmith.runs.finish import Finished, finish
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.pinned_data import PinnedData, load_pinned, pin
from tunesmith.runs.preview import preview_tokens
from tunesmith.runs.proof import Proof
from tunesmith.runs.result import RunResult
from tunesmith.runs.stop import StopWish, stop_on_signals
from tunesmith.specs.tune import DataSpec, TuneSpec
from tunesmith.train.checkpoints import CheckpointStore
from tunesmith.train.loop import Loop, Outcome, Records, TrainingData
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.settings import resolve_limits, resolve_optimisation
from tunesmith.train.sft import Row, encode

#: Tokens computed in one pass where the user doesn't say: enough to fill the machine, little enough for its memory.
_TOKENS_PER_MICROBATCH = {"cpu": 2048, "cuda": 16384}
_BASE_ARM = as_is("the base", "the untuned base with the rows' own prompt")
_TUNED_ARM = as_is("the tuned model", "the tuned model with the rows' own prompt")


@dataclass(frozen=True)
class Workshop:
    """A base in memory and the rows as it sees them: all that planning and training need."""

    spec: TuneSpec
    loaded: LoadedModel
    renderer: ChatRenderer
    size: ModelSize
    train: Sequence[Row]
    validation: Sequence[Row]

    def plan(self) -> Plan:
        """Return what the run will take."""
        return make_plan(self.spec, self.size, self.train, self.validation, self.loaded.device)


def prepare_for(spec: TuneSpec, loaded: LoadedModel, renderer: ChatRenderer) -> tuple[TuneSpec, PreparedData]:
    """Read, check and split the data under the base's tokenizer, and replace every `auto` of the spec.

    Raises:
        DataError: the data can't be used.
    """
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if loaded.dtype == torch.bfloat16 else "float32"
    limits = resolve_limits(
        spec.limits,
        context_tokens=loaded.context_tokens,
        dtype=dtype,
        tokens_per_microbatch=_TOKENS_PER_MICROBATCH[loaded.device.type],
    )
    assert not isinstance(limits.max_tokens, str)
    prepared = limit_rows(prepare(spec.data), renderer, limits.max_tokens, spec.data)
    if not prepared.train:
        raise DataError(
            "No rows are left to learn from.",
            where=spec.data.path,
            fix="Add rows, or set aside fewer (data.test_fraction, data.validation_fraction).",
            code="too_few_examples",
        )
    hidden = loaded.model.config.get_text_config().hidden_size
    optimisation = resolve_optimisation(spec.optimisation, rows=len(prepared.train), hidden=hidden)
    return spec.model_copy(update={"limits": limits, "optimisation": optimisation}), prepared


def limit_rows(prepared: PreparedData, renderer: ChatRenderer, max_tokens: int, data: DataSpec) -> PreparedData:
    """Drop, cut or refuse rows that are longer than `max_tokens` once rendered, as `data.too_long` says.

    Raises:
        DataError: see `prepare.lengths.limit_lengths`, or the chat template refuses a row.
    """

    def measure(row: Conversation) -> RowLength:
        sequences = renderer.for_training(row)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        return RowLength(longest, sum(sequence.cut(max_tokens).learnt_tokens for sequence in sequences))

    return limit_lengths(prepared, measure, max_tokens, data.too_long)


def load_for(spec: TuneSpec, home: Home) -> tuple[LoadedModel, ChatRenderer, ModelSize]:
    """Resolve and load the spec's base.

    Raises:
        ModelError: it can't be found or used.
    """
    source = resolve_base(spec.base, home)
    loaded = load_base(source, spec.limits.dtype)
    return loaded, ChatRenderer(loaded.tokenizer), model_size(source.folder)


def set_up(
    spec: TuneSpec, data: PinnedData | PreparedData, parts: tuple[LoadedModel, ChatRenderer, ModelSize]
) -> Workshop:
    """Render the rows of a resolved spec for its base."""
    loaded, renderer, size = parts
    assert not isinstance(spec.limits.max_tokens, str)
    train = encode(data.train, renderer, spec.limits.max_tokens)
    validation = encode(data.validation, renderer, spec.limits.max_tokens)
    return Workshop(spec, loaded, renderer, size, train, validation)


def start(spec: TuneSpec, home: Home, observer: Observer, *, untuned: Sequence[Arm] = ()) -> RunResult:
    """Start a run and work on it to its end.

    Args:
        spec: what is asked.
        home: where everything is kept.
        observer: sees events, steps and progress.
        untuned: ways to ask the untuned base, besides its rows' own prompt, that the verdict compares with.

    Raises:
        UserError: data, base or disk can't be used; nothing is registered.
        RunInterrupted: the user stopped it; `resume` goes on.
    """
    home.check_writable()
    parts = load_for(spec, home)
    resolved, prepared = prepare_for(spec, parts[0], parts[1])
    folder = RunFolder.create(resolved, home)
    with _watched(folder):
        data = pin(prepared, folder.data)
        return _work(folder, resolved, data, parts, home, observer, untuned)


def resume(name: str, home: Home, observer: Observer, *, untuned: Sequence[Arm] = ()) -> RunResult:
    """Go on with a run that was stopped or cut off, from its newest whole checkpoint.

    Raises:
        RunError: there is no such run, it has finished, or its files were changed.
        RunInterrupted: the user stopped it again.
    """
    folder = RunFolder.find(name, home)
    if folder.view().state == "succeeded":
        raise RunError(
            "This run has finished; there is nothing to resume.",
            where=folder.id,
            fix=f"Its model: {folder.view().model}",
            code="already_finished",
        )
    spec = folder.spec()
    data = load_pinned(folder.data)
    parts = load_for(spec, home)
    folder.update(state="running", error=None)
    with _watched(folder):
        return _work(folder, spec, data, parts, home, observer, untuned)


class _watched:
    """Notes in the run's status how it ended, if not well."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        interrupted = isinstance(error, RunInterrupted | KeyboardInterrupt)
        message = str(error) if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        self._folder.update(state="interrupted" if interrupted else "failed", error=message)


def _work(
    folder: RunFolder,
    spec: TuneSpec,
    data: PinnedData,
    parts: tuple[LoadedModel, ChatRenderer, ModelSize],
    home: Home,
    observer: Observer,
    untuned: Sequence[Arm],
) -> RunResult:
    with ExitStack() as open_files:
        events = open_files.enter_context(EventLog(folder.events_file, observer.event))
        metrics = open_files.enter_context(MetricsLog(folder.metrics_file))
        checkpoints = CheckpointStore(folder.checkpoints)
        records = Records(events, metrics, checkpoints, observer)
        events.add("run_started", f"Run {folder.id}.", run=folder.id, folder=str(folder.path))
        tokens = preview_tokens(data.train, parts[1])
        events.add("data_prepared", _data_sentence(data), report=data.report, tokens=tokens)
        workshop = set_up(spec, data, parts)
        plan = workshop.plan()
        events.add("plan", f"{plan.steps} steps of {plan.batch_size} rows.", **plan.to_json())
        proof = Proof(workshop.loaded, workshop.renderer, data.test, data.train, spec.evaluation, observer)
        arms: list[ArmResult] = []
        if data.test:
            asked = [*untuned, *([_BASE_ARM] if spec.evaluation.compare_base else [])]
            arms = [_measured(proof, arm, events) for arm in asked]
        adapter, outcome = _train(folder, workshop, records)
        if outcome.is_interrupted:
            events.add("interrupted", f"Stopped after step {outcome.state.step}.", step=outcome.state.step)
            raise RunInterrupted(folder.id, outcome.state.step)
        best = checkpoints.load(outcome.state.best_step)
        adapter.load_tensors(best.adapter, where=str(folder.checkpoints))
        merge_lora(workshop.loaded.model, adapter)
        if data.test:
            arms.append(_measured(proof, replace(_TUNED_ARM), events))
        verdict = decide(arms[-1], arms[:-1], confidence=spec.evaluation.confidence) if arms else None
        result = finish(
            Finished(
                folder, spec, data, workshop.loaded, workshop.renderer, plan, adapter, outcome, arms, verdict,
                _peak_memory_bytes(workshop.loaded.device), list(metrics.rows()),
            ),
            home,
        )  # fmt: skip
        write_parquet(list(metrics.rows()), folder.path / "metrics.parquet")
        folder.update(state="succeeded", model=result.version.name, sentence=result.verdict.sentence)
        events.add("run_finished", result.verdict.sentence, model=result.version.name)
        return result


def _train(folder: RunFolder, workshop: Workshop, records: Records) -> tuple[LoraAdapter, Outcome]:
    """Train to the end or to an interruption, from the newest checkpoint if there is one."""
    torch.manual_seed(workshop.spec.seed)
    adapter = add_lora(workshop.loaded.model, workshop.spec.adapter)
    wish = StopWish()
    loop = Loop(
        TreeModel.of(workshop.loaded.model),
        adapter,
        TrainingData(workshop.train, workshop.validation),
        workshop.spec,
        records,
        wish,
    )
    newest = records.checkpoints.newest()
    for damage in records.checkpoints.damaged:
        records.events.add("damaged_checkpoint", f"{damage} The one before is used.", level="warning")
    step = newest.state.step if newest else 0
    records.events.truncate_after(step)
    records.metrics.truncate_after(step)
    if newest is not None:
        loop.resume(newest)
        records.events.add("run_resumed", f"Going on after step {step}.", folder=str(folder.path))
    with stop_on_signals(wish):
        return adapter, loop.run()


def _measured(proof: Proof, arm: Arm, events: EventLog) -> ArmResult:
    result = proof.measure_arm(arm)
    events.add(
        "evaluation", f"{result.measure.name} of {arm.name}: {result.score.value:.3f}.", **_plain(result.to_json())
    )
    return result


def _plain(arm: dict[str, Any]) -> dict[str, Any]:
    """Return an arm's figures without the list of rows, as an event's data."""
    return {key: value for key, value in arm.items() if key != "row_scores"}


def _data_sentence(data: PinnedData) -> str:
    report = data.report
    return (
        f"{report['rows']} rows: {len(data.train)} to learn from, {len(data.validation)} to validate, "
        f"{len(data.test)} locked for the test, {report['dropped']} dropped."
    )


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
