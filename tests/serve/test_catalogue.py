"""What is on offer, under which names."""

from __future__ import annotations

import pytest

from serving_models import register_tuned
from tunesmith.errors import ModelError, SpecError
from tunesmith.serve.catalogue import Catalogue
from tunesmith.specs.serving import ServeSpec

ALIAS = "gpt-4o-mini-2024-07-18"


def test_an_alias_stands_for_a_model_that_is_on_offer_then(tiny_folder, home):
    base = tiny_folder("smollm2")
    tuned = register_tuned(base, home)
    catalogue = Catalogue(home, [], {ALIAS: str(base), "ft:gpt-4o-mini:me::abc": tuned.id, "small": "smollm2-135m"})
    assert catalogue.aliases == {ALIAS: base.name, "ft:gpt-4o-mini:me::abc": tuned.name, "small": "smollm2-135m"}
    assert catalogue.find(ALIAS) == catalogue.find(base.name) and catalogue.find(ALIAS).name == base.name
    assert catalogue.find("ft:gpt-4o-mini:me::abc").name == tuned.name
    assert catalogue.find("small").name == "smollm2-135m"
    assert [model.name for model in catalogue.models()] == ["smollm2-135m", base.name, tuned.name]
    with pytest.raises(ModelError) as refused:
        catalogue.find("gpt-4o-mini")
    assert refused.value.code == "model_not_found"


def test_an_alias_takes_no_models_name_and_needs_a_model(tiny_folder, home):
    base = tiny_folder("smollm2")
    for name in (base.name, "smollm2-135m"):
        with pytest.raises(ModelError) as refused:
            Catalogue(home, [str(base)], {name: str(base)})
        assert refused.value.code == "same_name"
    with pytest.raises(ModelError) as refused:
        Catalogue(home, [], {ALIAS: "nothing"})
    assert refused.value.code == "model_not_found"


def test_what_jobs_make_is_on_offer_beside_named_models(tiny_folder, home):
    base = tiny_folder("smollm2")
    catalogue = Catalogue(home, [str(base)])
    by_hand = register_tuned(base, home, label="by-hand")
    of_job = register_tuned(base, home, seed=1, run="ftjob-1", organization="local", checkpoint_step=4)
    assert [(model.name, model.job) for model in catalogue.models()] == [(base.name, None), (of_job.name, "ftjob-1")]
    assert catalogue.find(of_job.name).weights == catalogue.find(base.name).weights
    with pytest.raises(ModelError):
        catalogue.find(by_hand.name)


def test_a_jobs_model_goes_by_its_whole_name_and_takes_no_others_short_one(tiny_folder, home):
    base = tiny_folder("smollm2")
    catalogue = Catalogue(home)
    by_hand = register_tuned(base, home, label="support")
    of_job = register_tuned(base, home, label="support", seed=1, run="ftjob-1", organization="local")
    assert catalogue.find("support").name == catalogue.find(by_hand.id).name == by_hand.name
    assert catalogue.find(of_job.name).name == of_job.name
    for name in (of_job.id, of_job.folder.name, of_job.name[:-1], "supp", "ft:"):
        with pytest.raises(ModelError) as refused:
            catalogue.find(name)
        assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("alias", ["", "name", "name=", "=model", "two words=model", "a=b"])
def test_aliases_are_pairs_of_a_name_and_a_model(alias):
    if alias == "a=b":
        assert ServeSpec.parse({"aliases": [alias, "c=d=e"]}).alias_table == {"a": "b", "c": "d=e"}
        alias_twice = [alias, "a=c"]
    else:
        alias_twice = [alias]
    with pytest.raises(SpecError):
        ServeSpec.parse({"aliases": alias_twice})
