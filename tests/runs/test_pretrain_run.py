"""Whole runs on a tiny random model: documents to a proven model, and several weighted files."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tunesmith import api
from tunesmith.cli.screen import Screen
from tunesmith.cli.tune import show_tuned
from tunesmith.errors import DataError, RunInterrupted, SpecError
from tunesmith.record.observer import Observer
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.pinned_data import load_pinned
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import TuneSpec

LINE = "A table for {} people at {} o'clock, please. Book it for Friday the {}th of June.\n"


@pytest.fixture
def spec(tmp_path, tiny_folder):
    book = tmp_path / "orders.txt"
    book.write_text(
        "".join(LINE.format(n % 9, n % 12, n % 28) + "\n" * (n % 4 == 0) for n in range(400)), encoding="utf-8"
    )
    return TuneSpec.parse(
        {
            "base": str(tiny_folder("smollm2")),
            "data": {"path": str(book), "max_train_rows": 24, "max_test_rows": 12},
            "method": "pretrain",
            "adapter": {"rank": 4},
            "limits": {"max_tokens": 128},
            "optimisation": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "validate_every_steps": 4},
        }
    )


class Interrupting(Observer):
    """Presses Ctrl-C after some steps, as a person would."""

    def __init__(self, after):
        self.left = after

    def step(self, report):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_text_becomes_a_proven_model(home, spec, capsys):
    result = api.tune(spec, home=home)
    figures = result.figures
    assert (figures.data.rows, figures.data.train, figures.data.test) == (1, 1, 1)
    assert (figures.train.rows, figures.train.steps) == (48, 12)
    assert figures.evaluation.measure == "perplexity" and figures.evaluation.rows == len(result.test_rows) <= 12
    # A random model is torn among all tokens; a trained one isn't.
    assert figures.evaluation.tuned.score < 0.8 * figures.evaluation.base.score
    assert figures.evaluation.tuned.low < figures.evaluation.tuned.score < figures.evaluation.tuned.high
    assert figures.verdict == "ship"
    report = json.loads((result.run.run_folder / "report.json").read_text(encoding="utf-8"))
    assert report["measure"]["kind"] == "perplexity"
    assert report["arms"][0]["score"] == pytest.approx(figures.evaluation.base.score)
    assert {"train_windows_left_out", "split_within_documents"} <= {
        finding["code"] for finding in load_pinned(result.run.run_folder / "data").report["findings"]
    }
    page = result.report.read_text(encoding="utf-8")
    assert "lower is better" in page and "passages" in page
    show_tuned(Screen(), result)
    shown = capsys.readouterr().out
    assert "bits per byte" in shown and "lower than that of the base" in shown
    assert result.model.generate("A table", max_completion_tokens=4).text is not None


def test_a_run_on_documents_goes_on_where_it_stopped(home, spec):
    whole = api.tune(spec, home=home).figures
    with pytest.raises(RunInterrupted) as caught:
        api.tune(spec, home=home, observer=Interrupting(5))
    resumed = api.resume(caught.value.run, home=home).figures
    assert resumed.train.loss == whole.train.loss
    assert resumed.evaluation == whole.evaluation


def test_plan_and_check_know_documents(home, spec):
    plan = api.plan(spec, home=home)
    assert (plan.rows, plan.steps, plan.method) == (24, 12, "pretrain")
    checked = api.check(spec.data, base=spec.base, home=home)
    assert checked.report["format"] == "documents"
    assert checked.preview.tokens[0] == ("<|endoftext|>", False) and all(
        learnt for _, learnt in checked.preview.tokens[1:]
    )


def test_methods_and_data_that_dont_fit_are_refused(home, spec):
    with pytest.raises(DataError) as caught:
        api.tune(str(spec.data.path), base=spec.base, home=home)
    assert caught.value.code == "documents_need_pretrain"
    for settings in ({"evaluation": {"measure": "json"}}, {"optimisation": {"early_stop_on": "score"}}):
        with pytest.raises(SpecError, match="pretrain"):
            TuneSpec.parse({"data": "book.txt", "method": "pretrain", **settings})


def test_several_files_with_weights_are_learnt_in_their_shares(home, tmp_path, tiny_folder):
    files = []
    for name, count, weight in (("tea", 60, 1), ("cake", 30, 4)):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {n * 7919} please", "completion": f"{n}"} for n in range(count)]
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        files.append({"path": path, "weight": weight})
    result = api.tune(
        files,
        base=str(tiny_folder("smollm2")),
        home=home,
        adapter__rank=2,
        optimisation__epochs=1,
        optimisation__batch_size=8,
        evaluation__compare_base=False,
        evaluation__max_output_tokens=2,
        evaluation__measure="text",
    )
    folder = RunFolder(result.run.run_folder)
    data = load_pinned(folder.data)
    assert [(source["train"], source["test"]) for source in data.report["sources"]] == [(48, 6), (24, 3)]
    assert sorted(row.source for row in data.train) == [0] * 48 + [1] * 24
    mixed = Base.load(folder.spec(), home).workshop(folder.spec(), data.train, data.validation).data.mixture
    assert mixed.counts == (24, 48)
    assert {row.source for row in data.test} == {0, 1}
    assert result.figures.train.rows == 72
