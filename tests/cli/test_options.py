"""Options drawn from specs: what is given on the command line is what the spec gets."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.cli.options import field_at, nested, option_field, parse_assignments, parse_pairs, setting_paths
from tunesmith.cli.reading import DATA_FLAGS, TUNE_FLAGS, Asked, data_spec, tune_spec
from tunesmith.errors import SpecError
from tunesmith.specs.data import SourceSpec
from tunesmith.specs.tune import TuneSpec


@pytest.mark.parametrize("path", [*DATA_FLAGS, *TUNE_FLAGS])
def test_every_option_belongs_to_a_field_with_an_explanation(path: str):
    assert field_at(TuneSpec, path).description


def test_every_setting_has_a_path_that_leads_to_its_field():
    paths = list(setting_paths(TuneSpec))
    assert "optimisation.learning_rate" in paths and "data.mapping" in paths
    assert all(field_at(TuneSpec, path).description for path in paths)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("optimisation.epochs=2", "optimisation.epochs", 2),
        ("optimisation.learning_rate=1e-3", "optimisation.learning_rate", 0.001),
        ("optimisation.epochs=auto", "optimisation.epochs", "auto"),
        ("evaluation.compare_base=false", "evaluation.compare_base", False),
        ("data.system=a = b", "data.system", "a = b"),
        ("adapter.target_modules=[q_proj, v_proj]", "adapter.target_modules", ["q_proj", "v_proj"]),
        ("data.mapping.input=question", "data.mapping.input", "question"),
    ],
)
def test_assignments_are_read_as_yaml(text: str, path: str, value: object):
    assert parse_assignments([text], TuneSpec) == {path: value}


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(SpecError) as caught:
        parse_assignments(["optimisation.epoch=2"], TuneSpec)
    assert caught.value.fix == "Did you mean optimisation.epochs?"
    assert caught.value.param == "optimisation.epoch"


def test_a_setting_in_the_wrong_group_is_found():
    with pytest.raises(SpecError) as caught:
        parse_assignments(["rank=4"], TuneSpec)
    assert "adapter.rank" in (caught.value.fix or "")


@pytest.mark.parametrize("text", ["optimisation.epochs", "=3", "data.path=[", "nonsense=1"])
def test_what_is_no_assignment_is_refused(text: str):
    with pytest.raises(SpecError):
        parse_assignments([text], TuneSpec)


@pytest.mark.parametrize("text", ["question", "input=", "=question", "inptu=question"])
def test_what_is_no_mapping_is_refused(text: str):
    with pytest.raises(SpecError, match="which column is which"):
        parse_pairs([text], "--map", ("input", "output"))


names = st.text("abc", min_size=1, max_size=2)


@given(st.dictionaries(st.lists(names, min_size=3, max_size=3).map(".".join), st.integers(), max_size=8))
def test_nesting_keeps_every_setting(settings: dict[str, int]):
    values = nested(settings)
    for path, value in settings.items():
        here = values
        for part in path.split("."):
            here = here[part]
        assert here == value


def test_nesting_leaves_its_base_alone():
    base = {"data": {"path": "a"}}
    assert nested({"data.path": "b", "seed": 1}, base) == {"data": {"path": "b"}, "seed": 1}
    assert base == {"data": {"path": "a"}}


def test_later_settings_win_over_the_spec_file(tmp_path):
    TuneSpec.parse({"data": {"path": "a.jsonl"}, "seed": 7, "adapter": {"rank": 4}}).write_yaml(tmp_path / "spec.yaml")
    asked = Asked("b.jsonl", tmp_path / "spec.yaml", ["input=q", "output=a"], ["adapter.rank=8"], drop_bad_rows=True)
    spec = tune_spec(asked, {"adapter.rank": 6, "data.system": "Be brief."})
    assert (spec.seed, spec.adapter.rank, spec.data.path) == (7, 8, "b.jsonl")
    assert spec.data.mapping == {"input": "q", "output": "a"}
    assert (spec.data.on_problem, spec.data.system) == ("drop", "Be brief.")


def test_a_spec_file_repeats_its_spec(tmp_path):
    spec = TuneSpec.parse({"data": {"path": "a.jsonl"}, "optimisation": {"epochs": 3}, "name": "mine"})
    spec.write_yaml(tmp_path / "spec.yaml")
    assert tune_spec(Asked(None, tmp_path / "spec.yaml"), {}) == spec


def test_reading_rows_has_no_use_for_other_settings():
    with pytest.raises(SpecError, match="no use for 'adapter'"):
        data_spec(Asked("a.jsonl", assignments=["adapter.rank=8"]), {})


@pytest.mark.parametrize(
    "asked",
    [
        Asked("a.jsonl", assignments=["data=[b.jsonl, {path: c.jsonl, weight: 2}]"], drop_bad_rows=True),
        Asked(None, assignments=["data.sources=[b.jsonl, {path: c.jsonl, weight: 2}]"], drop_bad_rows=True),
    ],
)
def test_data_may_be_several_files_with_weights(asked: Asked):
    data = tune_spec(asked, {}).data
    assert [(file.path, file.weight) for file in data.files] == [("b.jsonl", 1.0), ("c.jsonl", 2.0)]
    assert data.on_problem == "drop"


def test_a_command_lines_file_takes_the_place_of_a_specs_files(tmp_path: Path):
    file = tmp_path / "spec.yaml"
    file.write_text("data: [a.jsonl, {path: b.jsonl, format: alpaca}]", encoding="utf-8")
    assert [source.format for source in tune_spec(Asked(None, file), {}).data.files] == ["auto", "alpaca"]
    assert tune_spec(Asked("c.jsonl", file), {}).data.files == (SourceSpec(path="c.jsonl", format="auto"),)


@pytest.mark.parametrize("data", [{}, {"path": "a", "sources": ["b"]}, [], [{"path": "a", "weight": 0}], 7])
def test_data_is_one_file_or_several(data: object):
    with pytest.raises(SpecError) as caught:
        TuneSpec.parse({"data": data})
    assert (caught.value.param or "").startswith("data")


def test_the_kind_of_a_choice_shows_every_kind():
    field = option_field(TuneSpec, "adapter.kind")
    assert get_args(field.annotation) == ("lora", "qlora", "full")
    assert field.default == "lora"
    assert field.description == TuneSpec.model_fields["adapter"].description
    assert option_field(TuneSpec, "adapter.rank") is field_at(TuneSpec, "adapter.rank")


@pytest.mark.parametrize("before", ["lora", "qlora", "full"])
@pytest.mark.parametrize("after", ["lora", "qlora", "full"])
def test_another_kind_than_the_spec_files_keeps_what_both_have(tmp_path: Path, before: str, after: str):
    rank = {} if before == "full" else {"rank": 8}
    TuneSpec.parse({"data": "rows.jsonl", "adapter": {"kind": before, **rank}}).write_yaml(tmp_path / "spec.yaml")
    adapter = tune_spec(Asked(None, spec_file=tmp_path / "spec.yaml"), {"adapter.kind": after}).adapter
    assert adapter.kind == after
    if after != "full":
        assert adapter.rank == (16 if before == "full" else 8)
