"""`POST /v1/completions` on the wire: a text that goes on, as it was before there were chats."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tunesmith.errors import RequestError
from tunesmith.rest.bodies import read_object
from tunesmith.rest.invalid import invalid_value
from tunesmith.rest.reading import check_sampling, known_fields
from tunesmith.rest.schema import with_nulls
from tunesmith.rest.wire import SampledRequest, Usage

#: Why OpenAI's service may end a text.
EndReason = Literal["stop", "length"]

#: A text, or the ids of its tokens.
Prompt = str | tuple[int, ...]

#: What this server doesn't have, each with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {"suffix": ("",)}

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}


class CompletionRequest(SampledRequest):
    """The fields of `POST /v1/completions` that have an effect."""

    prompt: Any = Field("", json_schema_extra=_PROMPT_SCHEMA)
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=128)

    @property
    def each(self) -> int:
        """How many texts are made for each prompt."""
        return self.best_of or self.n

    @property
    def prompts(self) -> list[Prompt]:
        """The texts that go on.

        Raises:
            RequestError: they are neither texts nor tokens.
        """
        return _prompts(self.prompt)


class TextLogprobs(BaseModel):
    """Log-probabilities of a text's tokens; `text_offset` is where each begins in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One text."""

    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: EndReason | None


class TextCompletion(BaseModel):
    """The answer to a request; the pieces of a stream have the same form."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    system_fingerprint: str


def completion_body() -> dict[str, Any]:
    """Return the `openapi_extra` of the route. Null stands for the default everywhere."""
    schema = CompletionRequest.model_json_schema()
    schema["properties"] |= {name: {"enum": list(values)} for name, values in _UNSUPPORTED.items()}
    schema = with_nulls(schema)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def read_completion_request(body: bytes) -> CompletionRequest:
    """Return the request that a body holds.

    Raises:
        RequestError: it isn't JSON, lacks a field, or holds one that is wrong, unknown or not offered here.
    """
    given = known_fields(read_object(body), CompletionRequest, frozenset(), _UNSUPPORTED)
    try:
        request = CompletionRequest.model_validate(given)
    except ValidationError as error:
        raise invalid_value(error.errors()[0]) from error
    check_sampling(request)
    _check_together(request)
    return request


def _check_together(request: CompletionRequest) -> None:
    """Refuse fields that contradict each other, or that together ask for what isn't offered here.

    Raises:
        RequestError: they do.
    """
    _ = request.prompts
    if request.max_tokens == 0 and not request.echo:
        raise RequestError(
            "'max_tokens' can be 0 only with 'echo': there would be nothing to say.",
            code="integer_below_min_value",
            param="max_tokens",
        )
    if request.best_of is None:
        return
    if request.best_of < request.n:
        raise RequestError("'best_of' can't be less than 'n'.", code="invalid_value", param="best_of")
    if request.stream and request.best_of > request.n:
        raise RequestError(
            "'best_of' can't be streamed: which texts are best is known at their end.",
            code="invalid_value",
            param="best_of",
        )


def _prompts(said: Any) -> list[Prompt]:
    if isinstance(said, str):
        return [said]
    if isinstance(said, list) and said:
        if all(isinstance(one, str) for one in said):
            return said
        if _are_ids(said):
            return [tuple(said)]
        if all(isinstance(one, list) and one and _are_ids(one) for one in said):
            return [tuple(one) for one in said]
    raise RequestError(
        "Invalid type for 'prompt': expected a string, token ids, or an array of either.",
        code="invalid_type",
        param="prompt",
    )


def _are_ids(values: list[Any]) -> bool:
    # True and False are numbers to Python.
    return all(type(value) is int and value >= 0 for value in values)
