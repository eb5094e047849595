"""A whole run on a tiny random Llama: what it leaves on the disk, how it ends, how it goes on."""

import json
import os
import shutil
import signal

import pytest

from tunesmith import api
from tunesmith.errors import AnsweringInterrupted, DataError, RunError, RunInterrupted
from tunesmith.record.observer import Observer
from tunesmith.record.parquet import read_parquet
from tunesmith.specs.tune import TuneSpec


def write_rows(path, count=60):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Give the number as JSON."},
                {"role": "user", "content": f"{word} {number} please"},
                {"role": "assistant", "content": json.dumps({"item": word, "number": number})},
            ]
        }
        for number in range(count // 3)
        for word in ("tea", "cake", "soup")
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def spec(tmp_path, tiny_folder):
    return TuneSpec.parse(
        {
            "base": str(tiny_folder("smollm2")),
            "data": {"path": str(write_rows(tmp_path / "orders.jsonl"))},
            "name": "orders",
            "adapter": {"rank": 4},
            "optimisation": {"epochs": 1, "batch_size": 8, "validate_every_steps": 2},
            "evaluation": {"max_output_tokens": 8},
        }
    )


class Interrupting(Observer):
    """Presses Ctrl-C after some steps, as a person would."""

    def __init__(self, after):
        self.after = after
        self.steps = []

    def step(self, report):
        self.steps.append(report.step)
        if len(self.steps) == self.after:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_leaves_everything_behind(home, spec):
    events = []
    watcher = Observer()
    watcher.event = events.append
    result = api.tune(spec, home=home, observer=watcher)
    figures = result.figures
    assert figures.data.rows == 60 == figures.data.train + figures.data.validation + figures.data.test
    assert figures.train.steps == -(-figures.data.train // 8)
    assert figures.train.rows == figures.data.train
    assert figures.evaluation.measure == "exact match"
    assert figures.verdict == result.verdict.kind
    folder = result.run.run_folder
    expected = {
        "spec.yaml", "status.json", "events.jsonl", "metrics.jsonl", "metrics.parquet", "row_losses.jsonl",
        "row_losses.parquet", "checkpoints", "data", "report.html", "report.json",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == expected
    assert read_parquet(folder / "metrics.parquet")[-1]["step"] == figures.train.steps
    resolved = TuneSpec.from_yaml(folder / "spec.yaml")
    assert "auto" not in {str(value) for value in resolved.optimisation.model_dump().values()}
    kinds = [event.type for event in events]
    assert kinds[:4] == ["run_started", "data_prepared", "plan", "evaluation"]
    assert kinds[-2:] == ["evaluation", "run_finished"]
    version = result.run.version
    assert figures.model == version.name
    assert version.name.startswith("ft:tiny-smollm2:local:orders:")
    assert {path.name for path in version.folder.iterdir()} == {
        "manifest.json", "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert [view.state for view in api.list_runs(home)] == ["succeeded"]
    assert [model.name for model in api.list_models(home)] == [version.name]


def test_a_spec_from_a_run_folder_repeats_the_run(home, spec):
    first = api.tune(spec, home=home)
    again = api.tune(TuneSpec.from_yaml(first.run.run_folder / "spec.yaml"), home=home)
    one, two = (r.run.version.folder / "adapter_model.safetensors" for r in (first, again))
    assert one.read_bytes() == two.read_bytes()
    assert [a.answers for a in first.arms] == [a.answers for a in again.arms]


def test_ctrl_c_keeps_a_checkpoint_and_resume_gives_the_same_model(home, spec, tmp_path):
    undisturbed = api.tune(spec, home=home)
    with pytest.raises(RunInterrupted) as caught:
        api.tune(spec, home=home, observer=Interrupting(after=3))
    assert caught.value.step == 3
    assert caught.value.exit_code == 130
    assert api.find_run(caught.value.run, home).view().state == "interrupted"
    assert len(api.list_models(home)) == 1
    (tmp_path / "orders.jsonl").unlink()  # a run keeps its own copy of the rows
    watching = Interrupting(after=-1)
    resumed = api.resume(caught.value.run, home=home, observer=watching)
    assert watching.steps[0] == 4
    one, two = (r.run.version.folder / "adapter_model.safetensors" for r in (undisturbed, resumed))
    assert one.read_bytes() == two.read_bytes()
    steps = [row["step"] for row in read_parquet(resumed.run.run_folder / "metrics.parquet") if row["loss"] is not None]
    assert steps == list(range(1, resumed.figures.train.steps + 1))


def test_a_finished_run_is_not_resumed(home, spec):
    result = api.tune(spec, home=home)
    with pytest.raises(RunError) as caught:
        api.resume(result.run.run_folder.name, home=home)
    assert caught.value.code == "already_finished"
    with pytest.raises(RunError) as caught:
        api.resume("nothing-like-this", home=home)
    assert caught.value.code == "run_not_found"


def test_rows_longer_than_the_limit_are_counted(home, spec, tmp_path):
    path = write_rows(tmp_path / "long.jsonl")
    words = {"messages": [{"role": "user", "content": "w " * 4000}, {"role": "assistant", "content": "{}"}]}
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(words))
    long = spec.model_copy(update={"data": spec.data.model_copy(update={"path": str(path)})})
    result = api.tune(long, home=home)
    assert result.figures.data.dropped == 1
    assert result.figures.data.rows == 61
    refusing = long.model_copy(update={"data": long.data.model_copy(update={"too_long": "error"})})
    with pytest.raises(DataError) as caught:
        api.tune(refusing, home=home)
    assert "line 61" in str(caught.value)
    assert len(api.list_runs(home)) == 1


def test_a_failed_run_says_why(home, spec):
    broken = spec.model_copy(
        update={"optimisation": spec.optimisation.model_copy(update={"learning_rate": 1.0, "max_gradient_norm": 1e9})}
    )

    class Poison(Observer):
        def event(self, event):
            if event.type == "plan":
                raise OSError(5, "the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        api.tune(broken, home=home, observer=Poison())
    view = api.list_runs(home)[0]
    assert view.state == "failed"
    assert "terminal" in view.error


def test_python_users_get_answers(home, spec):
    result = api.tune(str(spec.data.path), base=spec.base, home=home, optimisation__epochs=0.2, adapter__rank=2)
    one = result.model.generate("tea 4 please", max_completion_tokens=5)
    assert one.completion_tokens <= 5
    both = result.model.generate(["tea 4 please", [{"role": "user", "content": "cake 3 please"}]])
    assert len(both) == 2
    assert "".join(result.model.stream("tea 4 please", max_completion_tokens=5)) == one.text


def test_a_file_of_prompts_is_answered_in_order_and_continued(home, spec, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"tea {n} please"}) for n in range(20)), encoding="utf-8")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    figures = api.generate_file(spec.base, prompts, whole, home=home)
    lines = whole.read_text(encoding="utf-8").splitlines()
    assert figures.requests == len(lines) == 20
    assert [json.loads(line)["index"] for line in lines] == list(range(20))

    class Stop(Observer):
        def answers(self, report):
            if report.done > 8:
                raise KeyboardInterrupt

    with pytest.raises(AnsweringInterrupted, match="of 20 answers"):
        api.generate_file(spec.base, prompts, cut, home=home, observer=Stop())
    rest = api.generate_file(spec.base, prompts, cut, home=home)
    assert cut.read_text(encoding="utf-8").splitlines() == lines
    assert rest.requests < 20
    with pytest.raises(DataError) as caught:
        api.generate_file(spec.base, prompts, cut, home=home)
    assert caught.value.code == "output_exists"


def test_answers_that_call_tools_are_compared_as_the_model_writes_them(home, spec, tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "order", "arguments": '{"item": "tea"}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"tea number {number}"},
                {"role": "assistant", "tool_calls": [call]},
            ],
            "tools": [{"type": "function", "function": {"name": "order", "parameters": {"type": "object"}}}],
        }
        for number in range(30)
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    calls = spec.model_copy(update={"data": spec.data.model_copy(update={"path": str(path)})})
    result = api.tune(calls, home=home)
    written = '<tool_call>\n{"name": "order", "arguments": {"item": "tea"}}\n</tool_call>'
    assert {row.reference for row in result.test_rows} == {written}


def test_a_base_without_a_chat_template_is_told(home, spec, tmp_path, tiny_folder):
    bare = shutil.copytree(tiny_folder("smollm2"), tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    events = []
    watcher = Observer()
    watcher.event = events.append
    api.tune(spec.model_copy(update={"base": str(bare)}), home=home, observer=watcher)
    assert [event.level for event in events if event.type == "plain_template"] == ["warning"]
