"""The `TuneSpec` of a job: what was asked through the API, in the words of a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tunesmith.record.jobs import Job
from tunesmith.specs.jobs import JOB_DEFAULTS
from tunesmith.specs.tune import TuneSpec


def job_spec(job: Job, training: Path, validation: Path | None) -> TuneSpec:
    """Return the spec of a job whose files lie here.

    Args:
        job: with resolved hyperparameters.
        training: its rows.
        validation: its rows for validation, if there are any.

    Raises:
        SpecError: the job's own settings don't fit together.
    """
    values: dict[str, Any] = copy.deepcopy(job.spec)
    data = {**JOB_DEFAULTS["data"], **values.get("data", {}), "path": str(training)}
    if validation is not None:
        data["validation_path"] = str(validation)
    asked = job.hyperparameters or {}
    optimisation = dict(JOB_DEFAULTS["optimisation"])
    for theirs, ours in (("n_epochs", "epochs"), ("batch_size", "batch_size")):
        if asked.get(theirs) not in (None, "auto"):
            optimisation[ours] = asked[theirs]
    values |= {
        "base": job.base,
        "name": job.suffix,
        "seed": job.seed,
        "data": data,
        "optimisation": {**optimisation, **values.get("optimisation", {})},
    }
    return TuneSpec.parse(values)


def with_multiplied_rate(spec: TuneSpec, multiplier: Any, usual_rate: float) -> TuneSpec:
    """Return a spec whose learning rate is the usual one times the job's multiplier, unless it says a rate itself.

    Args:
        spec: of the job.
        multiplier: a number; anything else changes nothing.
        usual_rate: what `auto` means for the spec's base.
    """
    optimisation = spec.optimisation
    if optimisation.learning_rate != "auto" or not isinstance(multiplier, int | float) or multiplier == 1:
        return spec
    rate = min(1.0, usual_rate * multiplier)
    return spec.model_copy(update={"optimisation": optimisation.model_copy(update={"learning_rate": rate})})
