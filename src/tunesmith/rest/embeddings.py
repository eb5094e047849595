"""`POST /v1/embeddings`: vectors of texts, or of the tokens that the model's own tokenizer makes of them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import ModelError, RequestError
from tunesmith.models.encoder import Encoder, Vectors
from tunesmith.rest.bodies import read_body
from tunesmith.rest.errors import WireFault, model_not_found, model_unavailable
from tunesmith.rest.limits import Allowance
from tunesmith.rest.model_lookup import pool_of
from tunesmith.rest.schema import json_body
from tunesmith.rest.session import unless_gone
from tunesmith.serve.catalogue import ServedEncoder

router = APIRouter()

#: As on the hosted service.
MOST_INPUTS = 2048
MOST_TOKENS = 300_000
#: A text of more characters than this for each token that the model takes is refused before its tokens are counted.
_MOST_CHARACTERS_PER_TOKEN = 100

_INPUT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST_INPUTS},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "minItems": 1,
            "maxItems": MOST_INPUTS,
        },
    ]
}


class EmbeddingRequest(BaseModel):
    """The fields of a request; `user` is accepted without effect."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1)
    input: Any = Field(json_schema_extra=_INPUT)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class WireEmbedding(BaseModel):
    """One vector: numbers, or the base64 of their 32-bit little-endian floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens that were read, marks of beginning and end included."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The answer."""

    object: Literal["list"] = "list"
    data: list[WireEmbedding]
    model: str
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=Embeddings, openapi_extra=json_body(EmbeddingRequest))
async def create_embeddings(http: Request) -> Response:
    """Return a vector of length 1 for each input; too long ones are refused, never cut."""
    request = await read_body(http, EmbeddingRequest)
    model = await asyncio.to_thread(_find, http, request.model)
    embedder = pool_of(http).embedder
    try:
        encoder = await asyncio.to_thread(embedder.encoder, model.name)
    except ModelError as error:
        raise WireFault(model_unavailable(request.model)) from error
    dimensions = request.dimensions or encoder.dimensions
    if dimensions > encoder.dimensions:
        raise RequestError(
            f"Invalid 'dimensions': this model's vectors have {encoder.dimensions} numbers.",
            code="integer_above_max_value",
            param="dimensions",
        )
    rows = await asyncio.to_thread(_rows, request.input, encoder)
    # Counted as they are computed, so that callers who leave before the end pay for what was done.
    allowance: Allowance | None = http.state.allowance
    computing = embedder.submit(encoder, rows, None if allowance is None else allowance.spend)
    vectors = await unless_gone(http, _wait(computing))
    tokens = sum(map(len, rows))
    content = await asyncio.to_thread(
        _answer, _shortened(vectors, dimensions), model.name, tokens, is_base64=request.encoding_format == "base64"
    )
    return Response(content, media_type="application/json")


def _find(http: Request, name: str) -> ServedEncoder:
    """Return an encoder on offer.

    Raises:
        WireFault: there is none of that name.
        RequestError: the model of that name is for texts.
    """
    catalogue = pool_of(http).catalogue
    found = catalogue.find_encoder(name)
    if found is not None:
        return found
    known = ", ".join(f"'{one.name}'" for one in catalogue.encoders())
    try:
        catalogue.find(name)
    except ModelError as error:
        raise WireFault(model_not_found(name)) from error
    raise RequestError(
        f"The model `{name[:200]}` writes texts and makes no embeddings.",
        fix=f"Ask one that does: {known}." if known else "This server has none that does.",
        code="unsupported_model",
        param="model",
    )


def _rows(said: Any, encoder: Encoder) -> list[list[int]]:
    """Return a request's inputs as tokens.

    Raises:
        RequestError: they are none, too many or too long.
    """
    inputs = _inputs(said)
    if isinstance(inputs[0], str):
        _check_texts(inputs, encoder)
        rows = encoder.token_ids(inputs)
    else:
        rows = [_marked(row, encoder, "input" if len(inputs) == 1 else f"input[{i}]") for i, row in enumerate(inputs)]
    for i, row in enumerate(rows):
        if len(row) > encoder.max_tokens:
            raise _too_long(f"{len(row):,} tokens", encoder, "input" if len(rows) == 1 else f"input[{i}]")
    total = sum(map(len, rows))
    if total > MOST_TOKENS:
        raise RequestError(
            f"The inputs have {total:,} tokens; one request may have {MOST_TOKENS:,}.",
            fix="Send several requests.",
            code="max_tokens_per_request",
            param="input",
        )
    return rows


def _inputs(said: Any) -> list[Any]:
    """Return the inputs as a list of texts, or of lists of tokens.

    Raises:
        RequestError: they are something else, or too many.
    """
    if isinstance(said, str):
        return [said]
    if not isinstance(said, list):
        raise _wrong_type("input")
    if not said:
        raise RequestError("Invalid 'input': empty array.", code="empty_array", param="input")
    inputs = [said] if _is_id(said[0]) else said
    if len(inputs) > MOST_INPUTS:
        raise RequestError(
            f"Invalid 'input': array too long. Expected at most {MOST_INPUTS:,} inputs, but got {len(inputs):,}.",
            code="array_above_max_length",
            param="input",
        )
    kind = str if isinstance(inputs[0], str) else list
    for i, one in enumerate(inputs):
        if not isinstance(one, kind):
            raise _wrong_type(f"input[{i}]")
    return inputs


def _check_texts(texts: Sequence[str], encoder: Encoder) -> None:
    """Refuse texts that are empty, or so long that even counting their tokens would take a while.

    Raises:
        RequestError: there is one.
    """
    for i, text in enumerate(texts):
        place = "input" if len(texts) == 1 else f"input[{i}]"
        if not text:
            raise RequestError(f"Invalid '{place}': it can't be an empty string.", code="empty_string", param=place)
        if len(text) > encoder.max_tokens * _MOST_CHARACTERS_PER_TOKEN:
            raise _too_long(f"{len(text):,} characters", encoder, place)


def _marked(row: Sequence[Any], encoder: Encoder, place: str) -> list[int]:
    """Return an input of tokens with the marks of its beginning and end.

    Raises:
        RequestError: it is empty, or holds what is no token of this model.
    """
    if not row:
        raise RequestError(f"Invalid '{place}': empty array.", code="empty_array", param=place)
    if len(row) > encoder.max_tokens:
        raise _too_long(f"{len(row):,} tokens", encoder, place)
    for token_id in row:
        if not _is_id(token_id):
            raise _wrong_type(place)
        if not 0 <= token_id < encoder.vocabulary:
            raise RequestError(
                f"Invalid '{place}': {token_id} isn't a token of this model; its tokens go up to "
                f"{encoder.vocabulary - 1:,}.",
                fix="Send the text, or the tokens of the model's own tokenizer.",
                code="invalid_token",
                param=place,
            )
    return encoder.marked(row)


def _is_id(said: Any) -> bool:
    return isinstance(said, int) and not isinstance(said, bool)


def _wrong_type(place: str) -> RequestError:
    return RequestError(
        f"Invalid type for '{place}': expected a string, an array of strings, or arrays of tokens.",
        code="invalid_type",
        param=place,
    )


def _too_long(size: str, encoder: Encoder, place: str) -> RequestError:
    return RequestError(
        f"This model takes {encoder.max_tokens:,} tokens; '{place}' has {size}.",
        fix="Cut it into pieces.",
        code="context_length_exceeded",
        param=place,
    )


async def _wait(computing: Future[Vectors]) -> Vectors:
    return await asyncio.wrap_future(computing)


def _shortened(vectors: Vectors, dimensions: int) -> Vectors:
    """Return the first numbers of each vector, again of length 1."""
    if dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    # A vector of nothing has no direction; the first numbers of a real one are never all zero.
    lengths = np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(cut / lengths)


def _answer(vectors: Vectors, model: str, tokens: int, *, is_base64: bool) -> bytes:
    """Return the answer as JSON."""
    little_endian = vectors.astype("<f4", copy=False)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if is_base64 else row,
        }
        for index, row in enumerate(little_endian)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
