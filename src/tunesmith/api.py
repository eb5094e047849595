"""Tunesmith from Python: `import tunesmith as ts; ts.tune("bookings.jsonl")`. Every door calls these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.data.documents import holds_documents
from tunesmith.data.examples import Conversation
from tunesmith.data.writers import write_jsonl
from tunesmith.errors import SpecError
from tunesmith.evaluate.arms import Arm
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.verdict import Verdict
from tunesmith.model import Model
from tunesmith.models.versions import ModelVersion, find_version, list_versions
from tunesmith.prepare.documents import prepare_documents
from tunesmith.prepare.pipeline import prepare
from tunesmith.prepare.prepared import PreparedData
from tunesmith.prepare.report import data_report
from tunesmith.record.database import Database
from tunesmith.record.home import Home
from tunesmith.record.observer import Observer
from tunesmith.runs import execute, folder
from tunesmith.runs.folder import RunView
from tunesmith.runs.model_removal import remove_model
from tunesmith.runs.preview import preview_tokens
from tunesmith.runs.proof import Proof, Voice
from tunesmith.runs.result import RunResult
from tunesmith.runs.workshop import Base
from tunesmith.serve import answering, batch
from tunesmith.serve.prompts import PromptFile
from tunesmith.specs.data import DataSpec, data_values
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.results import GenerateFigures, TuneFigures
from tunesmith.specs.serving import Backend
from tunesmith.specs.tune import EvaluationSpec, PretrainSpec, SftSpec, TuneSpec
from tunesmith.train.plan import Plan

#: The rows to learn from: a file, several (each by its path, or as a mapping with a weight), or the data's settings.
Data = str | Path | Sequence[str | Path | Mapping[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True)
class TokenPreview:
    """One row as the model sees it: each token's text, and whether it is learnt."""

    tokens: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class CheckResult:
    """What is in a data set (`report`: see `prepare.report.data_report`), and with a base one row as it sees it."""

    report: dict[str, Any]
    preview: TokenPreview | None
    prepared: PreparedData[Any]


@dataclass(frozen=True)
class TuneResult:
    """A finished run: `figures` is what `--json` prints; `model` answers."""

    run: RunResult
    home: Home

    @property
    def figures(self) -> TuneFigures:
        """The numbers."""
        return self.run.figures

    @property
    def verdict(self) -> Verdict:
        """What the proof says."""
        return self.run.verdict

    @property
    def arms(self) -> Sequence[ArmResult]:
        """Every arm's result on the test rows, the tuned model last."""
        return self.run.arms

    @property
    def test_rows(self) -> Sequence[Conversation]:
        """The locked test rows, in the order in which the arms answered them."""
        return self.run.test_rows

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that the training rows shared, if they did; in use the model wants the same."""
        return self.run.version.made.summary.get("system")

    @property
    def report(self) -> Path:
        """The report for people, an HTML page."""
        return self.run.report_html

    @cached_property
    def model(self) -> Model:
        """The tuned model, opened when first asked for."""
        return open_model(self.run.version.name, home=self.home)


def check(data: Data | DataSpec, *, base: str | None = None, home: Home | None = None) -> CheckResult:
    """Read, check and split a data set; nothing is written.

    Args:
        data: a file, several, or how to read them.
        base: show one row as this base sees it, and drop rows that are too long for it.
        home: where bases are kept.

    Raises:
        DataError: rows are broken; the message lists them.
        ModelError: the base can't be used.
    """
    spec = data if isinstance(data, DataSpec) else DataSpec.parse(data_values(data))
    is_text = holds_documents(spec.files[0])
    if base is None:
        prepared: PreparedData[Any] = prepare_documents(spec) if is_text else prepare(spec)
        return CheckResult(data_report(prepared), None, prepared)
    tune_spec = TuneSpec(base=base, data=spec, method=PretrainSpec() if is_text else SftSpec())
    model = Base.load(tune_spec, _home(home))
    _, prepared = model.prepare(tune_spec)
    preview = TokenPreview(tuple(preview_tokens(prepared.train, model.renderer)))
    return CheckResult(data_report(prepared), preview, prepared)


def write_clean(data: DataSpec, output: Path) -> int:
    """Write the usable rows as OpenAI chat JSONL, documents as rows with a `text`; return how many.

    Raises:
        DataError: the file can't be read, or hardly a row is usable.
        StorageError: the output can't be written.
    """
    spec = data.model_copy(update={"on_problem": "drop"})
    prepared: PreparedData[Any]
    if holds_documents(spec.files[0]):  # whole, and not cut as they are for a run
        prepared = prepare_documents(spec.model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0}))
    else:
        prepared = prepare(spec)
    return write_jsonl(output, sorted(prepared.rows, key=lambda row: row.place.line if row.place else 0))


def plan(spec: TuneSpec, *, home: Home | None = None) -> Plan:
    """Return what a run will take: steps, memory, time.

    Raises:
        UserError: data or base can't be used.
    """
    base = Base.load(spec, _home(home))
    resolved, prepared = base.prepare(spec)
    replay = prepared.replay.rows if prepared.replay else ()
    return base.workshop(resolved, prepared.train, prepared.validation, replay).plan()


def tune(
    data: Data | TuneSpec,
    *,
    base: str | None = None,
    name: str | None = None,
    home: Home | None = None,
    observer: Observer | None = None,
    untuned: Sequence[Arm] = (),
    **settings: Any,
) -> TuneResult:
    """Tune a base on a data set, prove it on rows it never saw, register it.

    Args:
        data: a file of examples, several (`["a.jsonl", {"path": "b.jsonl", "weight": 2}]`), or a whole spec (then only
            `home`, `observer` and `untuned` may be given).
        base: the model to start from; `smollm2-135m` by default.
        name: a short name for the result.
        home: where everything is kept; `TUNESMITH_HOME` by default.
        observer: sees events, steps and progress.
        untuned: further ways to ask the untuned base, which the verdict compares with.
        settings: any other setting by its path, `__` for the dot: `optimisation__epochs=2`.

    Raises:
        UserError: data, base, a setting or the disk can't be used; nothing is registered.
        RunInterrupted: stopped by the user; `resume` goes on.
    """
    if isinstance(data, TuneSpec):
        if base is not None or name is not None or settings:
            raise SpecError("A whole spec leaves no room for further settings.", fix="Change the spec instead.")
        spec = data
    else:
        values: dict[str, Any] = {"data": data_values(data)}
        values |= {key: value for key, value in (("base", base), ("name", name)) if value is not None}
        for path, value in settings.items():
            _put(values, path.split("__"), value)
        spec = TuneSpec.parse(values)
    if untuned and isinstance(spec.method, PretrainSpec):
        raise SpecError(
            "Documents aren't asked anything, so there are no other ways to ask.", fix="Leave out `untuned`."
        )
    where = _home(home)
    return TuneResult(execute.start(spec, where, observer or Observer(), untuned=untuned), where)


def resume(
    run: str, *, home: Home | None = None, observer: Observer | None = None, untuned: Sequence[Arm] = ()
) -> TuneResult:
    """Go on with a run that was stopped.

    Raises:
        RunError: there is no such run, or it has finished.
        RunInterrupted: it was stopped again.
    """
    where = _home(home)
    return TuneResult(execute.resume(run, where, observer or Observer(), untuned=untuned), where)


def open_model(name: str, *, home: Home | None = None, backend: Backend = "torch") -> Model:
    """Load a base or a tuned model to ask it.

    Args:
        name: a tuned model or a base by any of its names.
        home: where tuned models are kept.
        backend: what computes: Tunesmith's own engine, or a vLLM server in the environment whose Python
            `TUNESMITH_VLLM_PYTHON` names.

    Raises:
        ModelError: there is none of this name, its files were changed, or the backend can't be used with it.
    """
    return Model(answering.open_model(name, _home(home), limits=answering.EngineLimits(backend=backend)))


def compare_arms(
    model: Model,
    rows: Sequence[Conversation],
    train: Sequence[Conversation],
    arms: Sequence[Arm],
    *,
    evaluation: EvaluationSpec | None = None,
    observer: Observer | None = None,
) -> list[ArmResult]:
    """Ask one model the same rows in several ways and score the answers.

    Args:
        model: who answers; nothing else may be asked of it meanwhile.
        rows: test rows with their references.
        train: training rows; their answers decide the measure.
        arms: the ways to ask.
        evaluation: how to measure.
        observer: sees progress.
    """
    opened = model.opened
    proof = Proof(
        opened.loaded,
        opened.renderer,
        rows,
        train,
        evaluation or EvaluationSpec(),
        observer or Observer(),
        Voice(opened.engine, opened.adapter),
    )
    return [proof.measure_arm(arm) for arm in arms]


def generate_file(
    model: str,
    source: str | Path,
    output: str | Path,
    *,
    sampling: SamplingSpec | None = None,
    system: str | None = None,
    home: Home | None = None,
    observer: Observer | None = None,
    backend: Backend = "torch",
) -> GenerateFigures:
    """Answer a file of prompts into another, one JSON object a line; a half-written output is continued.

        ts.generate_file("bookings", "prompts.jsonl", "answers.jsonl", sampling=ts.SamplingSpec(seed=1))

    Args:
        model: a tuned model or a base by any of its names.
        source: the prompts, see `serve.prompts.PromptFile`.
        output: where the answers go, in the prompts' order; see `serve.batch.answer_file`.
        sampling: how tokens are chosen; greedy by default.
        system: a system prompt for prompts that have none.
        home: where tuned models are kept.
        observer: sees progress.
        backend: see `open_model`.

    Raises:
        ModelError: there is no such model, or the backend can't be used with it.
        DataError: the prompts can't be read, or the output is finished, or holds something else.
        AnsweringInterrupted: stopped by Ctrl-C; the same call goes on.
    """
    prompts = PromptFile(Path(source), system)  # before the model is loaded: a broken file is told at once
    opened = open_model(model, home=home, backend=backend).opened
    return batch.answer_file(opened, prompts, Path(output), sampling or SamplingSpec(), observer or Observer())


def list_runs(home: Home | None = None) -> list[RunView]:
    """Return the runs, the newest first."""
    return folder.list_runs(_home(home))


def find_run(name: str, home: Home | None = None) -> folder.RunFolder:
    """Return a run by its id or the beginning of it.

    Raises:
        RunError: there is none, or more than one.
    """
    return folder.RunFolder.find(name, _home(home))


def list_models(home: Home | None = None) -> list[ModelVersion]:
    """Return the tuned models, the newest first."""
    return list_versions(_home(home))


def find_model(name: str, home: Home | None = None) -> ModelVersion:
    """Return a tuned model by its `ft:` name, id or label.

    Raises:
        ModelError: there is none, or more than one.
    """
    return find_version(name, _home(home))


def delete_model(name: str, home: Home | None = None) -> ModelVersion:
    """Remove a tuned model; return what it was.

    Raises:
        ModelError: there is none, or more than one; or a fine-tuning job starts from it (`model_in_use`).
        StorageError: the record can't be opened or written.
    """
    home = _home(home)
    version = find_version(name, home)
    database = Database.from_environment(home)
    try:
        database.migrate()
        remove_model(version, home, database)
    finally:
        database.close()
    return version


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _home(home: Home | None) -> Home:
    return home or Home.from_environment()
