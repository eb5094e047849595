"""What a request to create a job asks for, checked as far as that goes without the record and the models."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from tunesmith.errors import RequestError
from tunesmith.rest.job_methods import SUPPORTED, Body, Hyperparameters, Method, method_of
from tunesmith.rest.metadata import METADATA_SCHEMA, check_metadata
from tunesmith.runs.wandb_run import why_unavailable
from tunesmith.specs.base import spec_error
from tunesmith.specs.jobs import JobSettings
from tunesmith.specs.tune import plain_name

_LARGEST_SEED = 2**31 - 1


class Wandb(Body):
    """Where in Weights & Biases a job's figures are to go."""

    project: str = Field(min_length=1, max_length=256)
    name: str | None = Field(None, max_length=256)
    entity: str | None = Field(None, max_length=256)
    tags: list[Annotated[str, StringConstraints(max_length=64)]] | None = Field(None, max_length=50)


class Integration(Body):
    """A program that a job's figures are to go to."""

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(Body):
    """What a job is created with. `tunesmith` holds this server's own settings: `docs/reference/jobs.md`."""

    model: str = Field(min_length=1, max_length=512)
    training_file: str = Field(min_length=1, max_length=256)
    validation_file: str | None = Field(None, max_length=256)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, deprecated=True)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=_LARGEST_SEED)
    integrations: list[Integration] | None = Field(None, max_length=5)
    metadata: Any = Field(None, json_schema_extra=METADATA_SCHEMA)
    tunesmith: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A request that is right in itself.

    Attributes:
        kind: the method; workers know it.
        method: the method with its hyperparameters, as replies show it.
        hyperparameters: numbers or `auto`.
        settings: this server's own.
        seed: as asked, or drawn.
    """

    body: CreateJob
    kind: str
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    settings: JobSettings
    metadata: dict[str, str] | None
    seed: int

    @property
    def integrations(self) -> list[dict[str, Any]]:
        """The integrations as replies show them."""
        return [one.model_dump() for one in self.body.integrations or ()]


def check_request(body: CreateJob) -> JobRequest:
    """Return what is asked for.

    Raises:
        RequestError: something is wrong or contradicts something else.
    """
    if body.suffix is not None:
        _check_suffix(body.suffix)
    kind, method, hyperparameters = method_of(body.method, body.hyperparameters)
    metadata = check_metadata(body.metadata)
    reason = why_unavailable() if body.integrations else None
    if reason is not None:
        raise RequestError(
            f"The integration 'wandb' can't be used: {reason}.",
            fix="Leave 'integrations' out, or ask who runs the server.",
            code="integration_unavailable",
            param="integrations",
        )
    settings = _settings(body.tunesmith)
    if settings.optimisation.learning_rate != "auto" and "learning_rate_multiplier" in hyperparameters.said():
        raise RequestError(
            "'learning_rate_multiplier' is a factor of the usual rate, and 'tunesmith.optimisation.learning_rate' says "
            "another one. Leave one of them out.",
            code="invalid_value",
            param="tunesmith.optimisation.learning_rate",
        )
    if kind == "reinforcement" and body.validation_file is None:
        raise RequestError(
            "Missing required parameter: 'validation_file'. Reinforcement jobs need one.",
            code="missing_required_parameter",
            param="validation_file",
        )
    if kind not in SUPPORTED:
        raise RequestError(
            f"This server can't run the method '{kind}' yet; it runs 'supervised'.",
            code="unsupported_method",
            param="method.type",
        )
    seed = secrets.randbelow(_LARGEST_SEED + 1) if body.seed is None else body.seed
    return JobRequest(body, kind, method, hyperparameters.shown(), settings, metadata, seed)


def _check_suffix(suffix: str) -> None:
    try:
        plain_name(suffix)
    except ValueError as error:
        raise RequestError(
            "Invalid 'suffix': expected letters, digits, '-', '_', '.' and spaces, at least one letter or digit.",
            code="invalid_value",
            param="suffix",
        ) from error


def _settings(said: dict[str, Any] | None) -> JobSettings:
    """Return this server's own settings of a job.

    Raises:
        RequestError: one is unknown or wrong.
    """
    try:
        # Strictly, so that a true is no number.
        return JobSettings.model_validate(_with_tuples({} if said is None else said), strict=True)
    except ValidationError as error:
        found = spec_error(error, page=JobSettings.reference_page)
        is_unknown = error.errors()[0]["type"] == "extra_forbidden"
        raise RequestError(
            f"Invalid 'tunesmith': {found.message}",
            code="unknown_parameter" if is_unknown else "invalid_value",
            param=f"tunesmith.{found.param}" if found.param else "tunesmith",
        ) from error


def _with_tuples(value: Any) -> Any:
    """Return a JSON value with tuples in place of lists, as specs hold them."""
    if isinstance(value, dict):
        return {key: _with_tuples(one) for key, one in value.items()}
    return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value
