"""OpenAI's chat completions on the wire: what a request may hold and what an answer looks like.

The policy on fields: what changes an answer is obeyed or refused, never dropped. Fields in `IGNORED` change nothing
here and are accepted, so that programs written for the hosted service run unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

#: Accepted without effect: they label a request, or steer billing, caching and safety of the hosted service.
IGNORED = frozenset(
    {
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "prediction",
    }
)  # fmt: skip

#: Fields that would change the answer and that this server doesn't have; each with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "store": (False,),
    "audio": (),
    "functions": (),
    "function_call": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}


_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Wire(BaseModel):
    """Types are taken as they are: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WireFunctionCall(_Wire):
    """The function that an assistant called; `arguments` is JSON text."""

    name: str = Field(min_length=1)
    arguments: str


class WireToolCall(_Wire):
    """One call in an assistant's message."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: WireFunctionCall
    index: int | None = None


class WireMessage(_Wire):
    """A message. What the service adds to its own answers (`refusal`, `annotations`, ...) may be sent back."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Any = Field(None, json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]})
    name: str | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class WireFunction(_Wire):
    """A function that the assistant may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(_Wire):
    """A tool; functions only."""

    type: Literal["function"]
    function: WireFunction


class WireStreamOptions(_Wire):
    """Options of a stream; obfuscation pads chunks against eavesdroppers and is left out here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class WireJsonSchema(_Wire):
    """The schema that answers must fit; it is kept to, `strict` or not."""

    name: str = Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class WireResponseFormat(_Wire):
    """The form of the answers."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: WireJsonSchema | None = None


class WireStructuredOutputs(_Wire):
    """vLLM's way to ask for a form, which OpenAI's client sends as `extra_body`; exactly one field is given."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = Field(None, min_length=1, max_length=10_000)
    choice: list[str] | None = Field(None, min_length=1, max_length=10_000)
    grammar: str | None = Field(None, min_length=1, max_length=100_000)


class ChatRequest(_Wire):
    """The fields of `POST /v1/chat/completions` that have an effect; null stands for the default."""

    model: str = Field(min_length=1)
    messages: list[WireMessage] = Field(min_length=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    n: int = Field(1, ge=1, le=128)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: Any = Field(None, json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array", "maxItems": 4}]})
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    response_format: WireResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, _Bias] = Field(default_factory=dict, max_length=1024)
    # vLLM's, which OpenAI's client sends as `extra_body`; a top-k of -1 means all tokens there.
    structured_outputs: WireStructuredOutputs | None = None
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: WireStreamOptions | None = None
    tools: list[WireTool] = Field(default_factory=list, max_length=128)
    tool_choice: Any = None
    parallel_tool_calls: bool = True

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


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
    refusal: None = None
    annotations: list[Any] = Field(default_factory=list)

    @model_serializer(mode="wrap")
    def _without_no_calls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        message: dict[str, Any] = serialize(self)
        if self.tool_calls is None:  # the service leaves it out, and programs ask whether it is there
            del message["tool_calls"]
        return message


class Choice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


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
