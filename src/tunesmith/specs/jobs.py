"""`JobSettings`: what a fine-tuning job may set beyond OpenAI's own fields, drawn from the settings of a run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from tunesmith.specs.base import Spec
from tunesmith.specs.data import DataSpec
from tunesmith.specs.tune import AdapterSpec, EvaluationSpec, LimitsSpec, LoraSpec, OptimisationSpec, SftSpec

#: What a job's user expects who sets none of it: all rows are learnt, for as many epochs as were asked for, and long
#: ones are cut at their end.
JOB_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "data": {"validation_fraction": 0.0, "test_fraction": 0.0, "too_long": "cut"},
    "optimisation": {"patience": 0},
}

#: A job's rows are its files, and nothing else on this machine.
_OUTSIDE = ("path", "sources", "mixing_temperature", "replay", "validation_path", "test_path")
#: The API's files have forms of their own, and one broken row fails a job.
_OF_FORMS = ("format", "mapping", "on_problem")
#: The API has fields for these.
_NAMED_ELSEWHERE = ("epochs", "batch_size")
#: What other work on the machine needs is not for a job to say.
_OF_THE_MACHINE = ("memory_bytes",)


def _narrowed(name: str, spec: type[Spec], without: Collection[str], defaults: Mapping[str, Any]) -> type[Spec]:
    """Return a spec with fewer settings, and some other defaults."""
    kept: dict[str, Any] = {}
    for key, field in spec.model_fields.items():
        if key in without:
            continue
        own = copy.copy(field)
        if key in defaults:
            own.default = defaults[key]
        kept[key] = (field.annotation, own)
    return create_model(name, __base__=Spec, __doc__=spec.__doc__, **kept)


if TYPE_CHECKING:  # to a checker they are the specs that they are drawn from
    JobData = DataSpec
    JobOptimisation = OptimisationSpec
    JobLimits = LimitsSpec
else:
    JobData = _narrowed("JobData", DataSpec, (*_OUTSIDE, *_OF_FORMS), JOB_DEFAULTS["data"])
    JobOptimisation = _narrowed("JobOptimisation", OptimisationSpec, _NAMED_ELSEWHERE, JOB_DEFAULTS["optimisation"])
    JobLimits = _narrowed("JobLimits", LimitsSpec, _OF_THE_MACHINE, {})


class JobSettings(Spec):
    """Settings of a run that a job may have, as `tunesmith` in the body that creates it."""

    reference_page = "jobs.md"

    revision: str | None = Field(
        None,
        min_length=7,
        max_length=64,
        pattern="^[0-9a-f]+$",
        description="The commit of the base's repository that is wanted, or its beginning. A server that has another "
        "refuses the job.",
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Of the jobs that wait, those with a higher number go first; those with the same go in order.",
    )
    data: JobData = Field(default_factory=JobData, description="How the job's files are read, checked and split.")
    method: SftSpec = Field(default_factory=SftSpec, description="How to learn.")
    adapter: AdapterSpec = Field(default_factory=LoraSpec, description="What is trained.")
    optimisation: JobOptimisation = Field(default_factory=JobOptimisation, description="How the weights move.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How the result is proved.")
    limits: JobLimits = Field(default_factory=JobLimits, description="Bounds on tokens and arithmetic.")

    def asked(self) -> dict[str, Any]:
        """Return what was set, by group, without what is the server's alone."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"revision", "priority"})
