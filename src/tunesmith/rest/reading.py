"""From a request's bytes to a `ChatRequest`, or the error in the words that OpenAI's service uses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import BaseModel, ValidationError

from tunesmith.errors import RequestError
from tunesmith.rest.bodies import read_object
from tunesmith.rest.functions import with_functions
from tunesmith.rest.invalid import invalid_value
from tunesmith.rest.metadata import check_metadata
from tunesmith.rest.tools import check_parameters, tool_choice_of
from tunesmith.rest.wire import IGNORED, UNSUPPORTED, ChatRequest, SampledRequest

_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")


def read_chat_request(body: bytes) -> ChatRequest:
    """Return the request that a body holds.

    Raises:
        RequestError: it isn't JSON, lacks a field, or holds one that is wrong, unknown or not offered here.
    """
    given = known_fields(read_object(body), ChatRequest, IGNORED, UNSUPPORTED)
    try:
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        raise invalid_value(error.errors()[0]) from error
    request = with_functions(request)
    _check_together(request)
    return request


def known_fields(
    values: dict[str, Any], model: type[BaseModel], ignored: Set[str], unsupported_fields: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return the fields of a request that have an effect; null stands for the default, so it counts as left out.

    Args:
        values: the body.
        model: its fields have an effect.
        ignored: fields that are accepted without one.
        unsupported_fields: fields that would have one elsewhere, each with the values that change nothing.

    Raises:
        RequestError: a field is unknown, or asks for what isn't offered here.
    """
    unknown = sorted(values.keys() - model.model_fields.keys() - ignored - unsupported_fields.keys())
    if unknown:
        raise RequestError(
            f"Unknown parameter: '{unknown[0][:100]}'.", code="unknown_parameter", param=unknown[0][:100]
        )
    given = {key: value for key, value in values.items() if value is not None}
    for name, harmless in unsupported_fields.items():
        if name in given and not any(given[name] == value for value in harmless):
            raise unsupported(name, f"'{name}' isn't supported by this server.")
    return {key: given[key] for key in given if key in model.model_fields}


def unsupported(param: str, message: str) -> RequestError:
    """Return the error for something that OpenAI's service can do and this server can't."""
    return RequestError(message, fix=f"Leave '{param}' out.", code="unsupported_parameter", param=param)


def _check_together(request: ChatRequest) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RequestError: they do.
    """
    if request.top_logprobs and not request.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs' to be true.", code="invalid_value", param="top_logprobs")
    check_sampling(request)
    check_parameters(request)
    tool_choice_of(request)
    check_metadata(request.metadata)


def check_sampling(request: SampledRequest) -> None:
    """Refuse what no kind of request for answers can have.

    Raises:
        RequestError: it has it.
    """
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "'stream_options' is only allowed when 'stream' is true.", code="invalid_value", param="stream_options"
        )
    _check_stop(request.stop)
    _check_logit_bias(request.logit_bias)


def _check_stop(stop: Any) -> None:
    """Refuse what isn't a text or up to four texts.

    Raises:
        RequestError: it isn't.
    """
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(
            "Invalid type for 'stop': expected a string or an array of strings.", code="invalid_type", param="stop"
        )
    if len(texts) > 4:
        raise RequestError(
            f"Invalid 'stop': array too long. Expected at most 4 texts, but got {len(texts)} instead.",
            code="array_above_max_length",
            param="stop",
        )
    if "" in texts:
        raise RequestError("Invalid 'stop': a stop text can't be empty.", code="empty_string", param="stop")


def _check_logit_bias(biases: dict[str, float]) -> None:
    """Refuse keys that can't be token ids.

    Raises:
        RequestError: one isn't a number as JSON writes it.
    """
    for key in biases:
        if not _TOKEN_ID.fullmatch(key):
            raise RequestError(
                f"Invalid key in 'logit_bias': '{key[:100]}'. Expected the id of a token.",
                code="invalid_value",
                param="logit_bias",
            )
