"""Whole runs with `qlora` and `full`: what is registered and served is what was trained, also after a resume."""

import shutil

import pytest
from test_runs import Interrupting, write_rows

from tunesmith import api
from tunesmith.errors import ModelError, RunInterrupted
from tunesmith.models.quantised import Nf4Linear
from tunesmith.models.versions import verify
from tunesmith.serve.answering import open_model
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.tune import TuneSpec

KINDS = {
    "qlora": {"adapter": {"kind": "qlora", "rank": 4, "dropout": 0.1}},
    "full": {"adapter": {"kind": "full"}},
    "full-frugal": {
        "adapter": {"kind": "full", "rounding": "stochastic"},
        "optimisation": {"optimiser": "adamw_8bit"},
    },
}


@pytest.fixture
def spec_of(tmp_path, tiny_folder):
    def make(kind):
        asked = KINDS[kind]
        return TuneSpec.parse(
            {
                "base": str(tiny_folder("smollm2")),
                "data": {"path": str(write_rows(tmp_path / "orders.jsonl"))},
                "name": "orders",
                "adapter": asked["adapter"],
                "optimisation": {
                    "epochs": 1, "batch_size": 8, "validate_every_steps": 2, "learning_rate": 0.01,
                    **asked.get("optimisation", {}),
                },
                "evaluation": {"max_output_tokens": 8},
                "limits": {"dtype": "bfloat16"},
            }
        )  # fmt: skip

    return make


def weights_of(version):
    return {name: sha for name, sha in version.files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_in_a_model_that_answers_as_it_was_proved(home, spec_of, kind):
    result = api.tune(spec_of(kind), home=home)
    version = result.run.version
    verify(version)
    served = open_model(version.name, home, dtype="bfloat16" if kind != "qlora" else "auto")
    sampling = SamplingSpec(max_completion_tokens=8)
    answers = served.engine.generate([served.request(row.prompt, sampling) for row in result.test_rows])
    assert [answer.text for answer in answers] == list(result.arms[-1].answers) != list(result.arms[0].answers)
    assert any(isinstance(module, Nf4Linear) for module in served.loaded.model.modules()) == (kind == "qlora")
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert ("whole model" in card) == (version.made.kind == "model") == (kind != "qlora")


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_and_resume_give_the_same_weights(home, spec_of, kind):
    undisturbed = api.tune(spec_of(kind), home=home)
    with pytest.raises(RunInterrupted) as caught:
        api.tune(spec_of(kind), home=home, observer=Interrupting(after=3))
    resumed = api.resume(caught.value.run, home=home)
    one, two = (weights_of(result.run.version) for result in (undisturbed, resumed))
    assert one == two


def test_a_whole_model_needs_its_base_no_more_and_is_one_itself(home, spec_of, tmp_path):
    spec = spec_of("full")
    base = shutil.copytree(spec.base, tmp_path / "base")
    version = api.tune(spec.model_copy(update={"base": str(base)}), home=home).run.version
    shutil.rmtree(base)
    first = open_model(version.name, home)
    again = api.tune(spec.model_copy(update={"base": str(version.folder)}), home=home).run.version
    assert again.made.base == str(version.folder)
    assert open_model(again.name, home).fingerprint != first.fingerprint
    weights = version.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError) as refused:
        open_model(version.name, home)
    assert refused.value.code == "digest_mismatch"
