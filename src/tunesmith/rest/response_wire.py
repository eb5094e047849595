"""OpenAI's responses on the wire: what a request may hold, field by field and item by item.

The policy on fields is that of chat completions (`wire.py`): what changes an answer is obeyed or refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Accepted without effect: they label a request, or steer billing and caching of the hosted service.
IGNORED = frozenset({"service_tier", "prompt_cache_retention", "prompt_cache_options"})

#: Fields that would change the answer and that this server doesn't have; each with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "conversation": (),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "access_programs": (),
    "image": (),
    "modalities": (["text"],),
    "audio": (),
}

#: What a request may ask to be told besides. Most tell of tools that this server doesn't have.
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
LOGPROBS: Include = "message.output_text.logprobs"

#: Ids that callers give to items, or send back.
_Id = Annotated[str, Field(min_length=1, max_length=100)]
_Status = Literal["in_progress", "completed", "incomplete"]
_Name = Annotated[str, Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]


class _Wire(BaseModel):
    """Types are taken as they are: "1" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reasoning(_Wire):
    """How much to think first. Models here answer at once."""

    effort: Literal["none"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(_Wire):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: _Name | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextSettings(_Wire):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(_Wire):
    """Options of a stream; obfuscation pads events against eavesdroppers and is left out here."""

    include_obfuscation: bool | None = None


class FunctionTool(_Wire):
    """A function that the model may call. Where `strict` is left out, calls fit the schema if that can be promised."""

    type: Literal["function"]
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseRequest(_Wire):
    """The fields of `POST /v1/responses` that have an effect, or that the answer repeats."""

    model: str = Field(min_length=1)
    input: Any = Field(
        json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
    )
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    include: list[Include] = Field(default_factory=list)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    top_logprobs: int = Field(0, ge=0, le=20)
    text: TextSettings = Field(default_factory=TextSettings)
    tools: list[Any] = Field(
        default_factory=list, max_length=128, json_schema_extra={"items": {"type": "object", "required": ["type"]}}
    )
    tool_choice: Any = Field(
        None, json_schema_extra={"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}
    )
    parallel_tool_calls: bool = True
    truncation: Literal["auto", "disabled"] = "disabled"
    reasoning: Reasoning | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    metadata: Any = Field(None, json_schema_extra={"type": "object", "additionalProperties": {"type": "string"}})
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class MessageItem(_Wire):
    """A message: of the caller's, or one of the model's that is sent back."""

    type: Literal["message"] = "message"
    id: _Id | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Any
    status: _Status | None = None
    phase: str | None = None


class FunctionCallItem(_Wire):
    """A call that the model made; `arguments` is JSON text."""

    type: Literal["function_call"]
    id: _Id | None = None
    call_id: _Id
    name: str = Field(min_length=1)
    arguments: str
    status: _Status | None = None
    caller: None = None
    namespace: None = None
    created_by: str | None = None
    # A Python word can't be a field's name.
    is_async: Literal[False] | None = Field(None, alias="async")
    #: What the official client adds when it has parsed a call.
    parsed_arguments: Any = None


class FunctionOutputItem(_Wire):
    """What a call came to."""

    type: Literal["function_call_output"]
    id: _Id | None = None
    call_id: _Id
    output: Any
    status: _Status | None = None
    name: str | None = None
    caller: None = None
    namespace: None = None
    created_by: str | None = None


class TextPart(_Wire):
    """Words in a message; what the service adds to its own (`annotations`, `logprobs`) may be sent back."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Any = None
    #: What the official client adds when it has parsed an answer.
    parsed: Any = None


class RefusalPart(_Wire):
    """Words with which a model refused."""

    type: Literal["refusal"]
    refusal: str
