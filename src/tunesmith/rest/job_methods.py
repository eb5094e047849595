"""How a job is to learn, as requests say it: the method, its hyperparameters, its grader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, core_schema

from tunesmith.errors import RequestError

Kind = Literal["supervised", "dpo", "reinforcement"]

#: Methods that the workers know.
SUPPORTED: frozenset[Kind] = frozenset({"supervised"})

_GRADERS: Mapping[str, tuple[str, ...]] = {
    "string_check": ("name", "input", "reference", "operation"),
    "text_similarity": ("name", "input", "reference", "evaluation_metric"),
    "score_model": ("name", "model", "input"),
    "python": ("source",),
    "multi": ("graders", "calculate_output"),
}


class Body(BaseModel):
    """A part of a request: strictly read, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _OrAuto:
    """Lets a number be `auto` as well. A union would report each of its branches."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(_unless_auto, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"const": "auto"}, handler(schema)]}


def _unless_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else validate(value)


_AUTO: Any = "auto"
#: The highest is far above what anybody needs; more would be a slip.
_Multiplier = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), _OrAuto()]


class Hyperparameters(Body):
    """What all methods have; each is a number, or `auto`."""

    n_epochs: Annotated[int, Field(ge=1, le=50), _OrAuto()] = _AUTO
    batch_size: Annotated[int, Field(ge=1, le=256), _OrAuto()] = _AUTO
    learning_rate_multiplier: _Multiplier = _AUTO

    def shown(self) -> dict[str, Any]:
        """Return all of them as replies show them."""
        return dict(self)

    def said(self) -> dict[str, Any]:
        """Return those that were given as numbers."""
        return {name: value for name, value in self if value != "auto"}


class DpoHyperparameters(Hyperparameters):
    """Those of preference tuning."""

    beta: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False), _OrAuto()] = _AUTO


class ReinforcementHyperparameters(Hyperparameters):
    """Those of tuning by a grader."""

    compute_multiplier: Annotated[float, Field(gt=0.00001, le=10, allow_inf_nan=False), _OrAuto()] = _AUTO
    eval_interval: Annotated[int, Field(ge=1, le=1_000_000), _OrAuto()] = _AUTO
    eval_samples: Annotated[int, Field(ge=1, le=1_000_000), _OrAuto()] = _AUTO
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


_DEFAULTS: Mapping[Kind, type[Hyperparameters]] = {
    "supervised": Hyperparameters,
    "dpo": DpoHyperparameters,
    "reinforcement": ReinforcementHyperparameters,
}


class Supervised(Body):
    """Learn the assistant's words."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Body):
    """Learn which of two answers is better."""

    hyperparameters: DpoHyperparameters | None = None


class Reinforcement(Body):
    """Learn what a grader scores."""

    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: dict[str, Any] | None = None


class Method(Body):
    """The method, and the settings under its name."""

    type: Kind
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


def method_of(
    method: Method | None, deprecated: Hyperparameters | None
) -> tuple[Kind, dict[str, Any], Hyperparameters]:
    """Return the method of a job, what replies show under `method`, and its hyperparameters.

    Args:
        method: as the request has it; None is supervised.
        deprecated: the old field `hyperparameters` beside it, for supervised jobs.

    Raises:
        RequestError: parts contradict each other, or what the method needs is missing or wrong.
    """
    kind: Kind = method.type if method is not None else "supervised"
    settings: dict[str, Any] = {}
    if method is not None:
        for other in ("supervised", "dpo", "reinforcement"):
            if other != kind and getattr(method, other) is not None:
                raise RequestError(
                    f"'method.{other}' contradicts 'method.type', which is '{kind}'.",
                    code="invalid_value",
                    param=f"method.{other}",
                )
    own: Supervised | Dpo | Reinforcement | None = getattr(method, kind, None)
    if isinstance(own, Reinforcement):
        check_grader(own.grader, "method.reinforcement.grader")
        settings["grader"] = own.grader
        if own.response_format is not None:
            settings["response_format"] = own.response_format
    elif kind == "reinforcement":
        raise RequestError(
            "Missing required parameter: 'method.reinforcement'.",
            code="missing_required_parameter",
            param="method.reinforcement",
        )
    given = own.hyperparameters if own is not None else None
    hyperparameters: Hyperparameters = given or _DEFAULTS[kind]()
    if deprecated is not None:
        hyperparameters = _with_deprecated(kind, hyperparameters, deprecated)
    shown = {"type": kind, kind: {**settings, "hyperparameters": hyperparameters.shown()}}
    return kind, shown, hyperparameters


def _with_deprecated(kind: Kind, own: Hyperparameters, deprecated: Hyperparameters) -> Hyperparameters:
    """Return the hyperparameters with those of the old field, where only it names them."""
    said, named = deprecated.said(), own.said()
    if said and kind != "supervised":
        raise RequestError(
            f"'hyperparameters' is for supervised jobs. Write 'method.{kind}.hyperparameters'.",
            code="invalid_value",
            param="hyperparameters",
        )
    for name, value in said.items():
        if name in named and named[name] != value:
            raise RequestError(
                f"'hyperparameters.{name}' is {value}, but 'method.supervised.hyperparameters.{name}' is "
                f"{named[name]}. Say it once.",
                code="invalid_value",
                param=f"hyperparameters.{name}",
            )
    return own.model_copy(update={**said, **named})


def check_grader(grader: Mapping[str, Any], at: str, *, is_inside: bool = False) -> None:
    """Refuse what isn't a grader that a job may have.

    Args:
        grader: as the request has it.
        at: where in the request it stands.
        is_inside: whether it is one of several.

    Raises:
        RequestError: its type is unknown or not for this place, or something that it needs is missing.
    """
    kind = grader.get("type")
    known = [name for name in _GRADERS if not (is_inside and name == "multi")]
    if kind not in known:
        shown = f"'{kind[:100]}'" if isinstance(kind, str) else "nothing of the kind"
        listed = ", ".join(f"'{name}'" for name in known)
        raise RequestError(
            f"Invalid value: {shown}. Supported values are: {listed}.", code="invalid_value", param=f"{at}.type"
        )
    for name in _GRADERS[kind]:
        if grader.get(name) in (None, "", {}, []):
            raise RequestError(
                f"Missing required parameter: '{at}.{name}'.", code="missing_required_parameter", param=f"{at}.{name}"
            )
    if kind == "multi":
        _check_graders(grader["graders"], f"{at}.graders")


def _check_graders(graders: Any, at: str) -> None:
    if not isinstance(graders, dict):
        raise RequestError(f"Invalid type for '{at}': expected an object.", code="invalid_type", param=at)
    # OpenAI's schema says one grader, its guide and service a map from names to graders.
    inside = {"": graders} if isinstance(graders.get("type"), str) else graders
    for name, one in inside.items():
        place = f"{at}.{name}" if name else at
        if not isinstance(one, dict):
            raise RequestError(f"Invalid type for '{place}': expected an object.", code="invalid_type", param=place)
        check_grader(one, place, is_inside=True)
