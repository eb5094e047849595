"""OpenAI's chat completions on the wire: what a request may hold and what an answer looks like.

The policy on fields: what changes an answer is obeyed or refused, never dropped. Fields in `IGNORED` change nothing
here and are accepted, so that programs written for the hosted service run unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from tunesmith.rest.metadata import METADATA_SCHEMA

#: Accepted without effect: they label a request, or steer billing, caching and safety of the hosted service.
IGNORED = frozenset(
    {
        "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
        "prediction",
    }
)  # fmt: skip

#: Fields that would change the answer and that this server doesn't have; each with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}


_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


_TOKEN_IDS: dict[str, Any] = {"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}}
_STOP_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4},
    ]
}


class Wire(BaseModel):
    """Types are taken as they are: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WireFunctionCall(Wire):
    """The function that an assistant called; `arguments` is JSON text."""

    name: str = Field(min_length=1)
    arguments: str


class WireToolCall(Wire):
    """One call in an assistant's message."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: WireFunctionCall
    index: int | None = None


class WireMessage(Wire):
    """A message. What the service adds to its own answers (`refusal`, `annotations`, ...) may be sent back."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Any = Field(None, json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]})
    name: str | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    #: As before there were tools; a message of the role `function` answers it.
    function_call: WireFunctionCall | None = None


class WireFunction(Wire):
    """A function that the assistant may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(Wire):
    """A tool; functions only."""

    type: Literal["function"]
    function: WireFunction


class WireStreamOptions(Wire):
    """Options of a stream; obfuscation pads chunks against eavesdroppers and is left out here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class WireJsonSchema(Wire):
    """The schema that answers must fit; it is kept to, `strict` or not."""

    name: str = Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class WireResponseFormat(Wire):
    """The form of the answers."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: WireJsonSchema | None = None


class WireStructuredOutputs(Wire):
    """vLLM's way to ask for a form, which OpenAI's client sends as `extra_body`; exactly one field is given."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = Field(None, min_length=1, max_length=10_000)
    choice: list[str] | None = Field(None, min_length=1, max_length=10_000)
    grammar: str | None = Field(None, min_length=1, max_length=100_000)


class SampledRequest(Wire):
    """What requests for answers have in common, chats or not; null stands for the default."""

    model: str = Field(min_length=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    n: int = Field(1, ge=1, le=128)
    stop: Any = Field(None, json_schema_extra=_STOP_SCHEMA)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, _Bias] = Field(default_factory=dict, max_length=1024, json_schema_extra=_TOKEN_IDS)
    # vLLM's, which OpenAI's client sends as `extra_body`; a top-k of -1 means all tokens there.
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: WireStreamOptions | None = None
    user: str | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SampledRequest):
    """The fields of `POST /v1/chat/completions` that have an effect."""

    messages: list[WireMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    response_format: WireResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    structured_outputs: WireStructuredOutputs | None = None  # vLLM's as well
    tools: list[WireTool] = Field(default_factory=list, max_length=128)
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    # As before there were tools; reading makes tools of them.
    functions: list[WireFunction] = Field(default_factory=list, min_length=1, max_length=128)
    function_call: Any = None
    store: bool = False
    metadata: Any = Field(None, json_schema_extra=METADATA_SCHEMA)


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of an answer, or of a piece of it."""

    content: list[Logprob]
    refusal: None = None


class AnswerFunctionCall(BaseModel):
    """The function that is called; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class AnswerToolCall(BaseModel):
    """One call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunctionCall


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[AnswerToolCall] | None = None
    function_call: AnswerFunctionCall | None = None
    refusal: None = None
    annotations: list[Any] = Field(default_factory=list)

    @model_serializer(mode="wrap")
    def _without_no_calls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        message: dict[str, Any] = serialize(self)
        for name in ("tool_calls", "function_call"):
            if message[name] is None:  # the service leaves it out, and programs ask whether it is there
                del message[name]
        return message


FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class Choice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptDetails(BaseModel):
    """Kinds of prompt tokens."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(BaseModel):
    """Kinds of answer tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """Tokens of the prompt, counted once, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = Field(default_factory=PromptDetails)
    completion_tokens_details: CompletionDetails = Field(default_factory=CompletionDetails)


class ChatCompletion(BaseModel):
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str
