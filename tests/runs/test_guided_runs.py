"""Whole runs that look for their rate, stop on a score, learn general rows along, and say what training did."""

from __future__ import annotations

import json

import pytest
from test_runs import Interrupting, write_rows

from tunesmith import api
from tunesmith.errors import RunInterrupted, SpecError
from tunesmith.evaluate.arms import as_is
from tunesmith.evaluate.general import Forgetting, bundled_instructions
from tunesmith.models.adapters.attach import add_adapter
from tunesmith.record.observer import Observer
from tunesmith.runs.pinned_data import pin
from tunesmith.runs.proof import Proof
from tunesmith.runs.validation_score import validation_scoring
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import TuneSpec


@pytest.fixture
def settings(tmp_path, tiny_folder):
    general = tmp_path / "general.jsonl"
    rows = [{"prompt": f"Say the number {n} twice.", "completion": f"{n}, {n}"} for n in range(40)]
    general.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "base": str(tiny_folder("smollm2")),
        "data": {"path": str(write_rows(tmp_path / "orders.jsonl")), "replay": {"path": str(general), "share": 0.25}},
        "adapter": {"rank": 4},
        "optimisation": {
            "learning_rate": "find", "early_stop_on": "score", "epochs": 2, "batch_size": 8, "validate_every_steps": 3,
        },
        "evaluation": {"max_output_tokens": 8},
    }  # fmt: skip


def test_everything_at_once_and_resumed(home, settings):
    spec = TuneSpec.parse(settings)
    events = []
    watcher = Observer()
    watcher.event = events.append
    whole = api.tune(spec, home=home, observer=watcher)
    said = {event.type: event for event in events}
    found = said["learning_rate_found"]
    resolved = TuneSpec.from_yaml(whole.run.run_folder / "spec.yaml")
    assert resolved.optimisation.learning_rate == found.data["rate"] > 0
    assert "exact match" in said["validation"].message
    assert said["data_prepared"].data["report"]["replay"]["learnt"] == 36
    assert said["forgetting"].data["rows"] == 4
    assert not said["forgetting"].data["bundled"]
    assert "word for word" in said["memorised"].message
    report = json.loads((whole.run.run_folder / "report.json").read_text(encoding="utf-8"))
    assert said["forgetting"].message in report["notes"]
    metrics = [json.loads(line) for line in (whole.run.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("tried_rate" in row for row in metrics) == len(found.data["rates"])
    with pytest.raises(RunInterrupted) as caught:
        api.tune(spec, home=home, observer=Interrupting(after=4))
    again = []
    watcher.event = again.append
    resumed = api.resume(caught.value.run, home=home, observer=watcher)
    assert "learning_rate_found" not in {event.type for event in again}  # spec.yaml has the number
    one, two = (r.run.version.folder / "adapter_model.safetensors" for r in (whole, resumed))
    assert one.read_bytes() == two.read_bytes()


def test_answers_in_training_are_those_of_the_merged_model(home, settings, tmp_path):
    # In float32: merging rounds, and a random model in bfloat16 takes another token for less.
    optimisation = {"early_stop_on": "score", "learning_rate": 0.01}
    spec = TuneSpec.parse({**settings, "optimisation": optimisation, "limits": {"dtype": "float32"}})
    base = Base.load(spec, home)
    spec, prepared = base.prepare(spec)
    data = pin(prepared, tmp_path / "data")
    adapter = add_adapter(base.loaded.model, spec.adapter)
    for group in adapter.parameter_groups():
        for parameter in group.parameters:
            parameter.data.normal_(std=0.05)
    scoring = validation_scoring(spec, base, data, Observer())
    base.loaded.model.train()
    before = scoring.measure()
    assert base.loaded.model.training
    proof = Proof(base.loaded, base.renderer, data.validation, data.train, spec.evaluation, Observer())
    base.loaded.model.eval()
    apart = proof.measure_arm(as_is("a", "apart"))
    adapter.merge()
    merged = proof.measure_arm(as_is("m", "merged"))
    assert before == apart.score.value == merged.score.value
    assert apart.answers == merged.answers


def test_a_score_needs_rows_to_score(home, settings):
    settings["data"]["validation_fraction"] = 0.0
    with pytest.raises(SpecError) as caught:
        api.tune(TuneSpec.parse(settings), home=home)
    assert caught.value.code == "nothing_to_score"


def test_bundled_instructions_measure_forgetting(home, settings):
    del settings["data"]["replay"]
    plain = {"learning_rate": 0.01, "epochs": 0.2, "batch_size": 8}
    spec = TuneSpec.parse(
        {**settings, "optimisation": plain, "evaluation": {"forgetting_rows": 3, "compare_base": False}}
    )
    events = []
    watcher = Observer()
    watcher.event = events.append
    api.tune(spec, home=home, observer=watcher)
    (event,) = [event for event in events if event.type == "forgetting"]
    assert event.data["rows"] == 3
    assert event.message.startswith("On general instructions the loss went from")


def test_bundled_instructions_are_short_and_answered():
    rows = bundled_instructions(200)
    assert len(rows) > 40
    assert len(set(rows)) == len(rows)
    assert all(row.reference and len(row.messages) == 2 for row in rows)


def test_much_forgetting_is_a_warning_with_a_way_out():
    little, much = Forgetting(2.0, 2.1, 24, True), Forgetting(2.0, 2.5, 24, True)
    assert (little.is_forgetting, much.is_forgetting) == (False, True)
    assert little.message == "On general instructions the loss went from 2.00 to 2.10 (+5%)."
    assert "data.replay" in much.message
