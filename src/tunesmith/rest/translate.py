"""Between the wire's words and ours: a request becomes a conversation, a completion becomes a choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

from tunesmith.data.examples import Conversation, Message, Role, ToolCall
from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import RequestError
from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.rest.forms import output_of
from tunesmith.rest.functions import as_tool_messages
from tunesmith.rest.reading import unsupported
from tunesmith.rest.tools import ToolUse
from tunesmith.rest.wire import (
    AnswerFunctionCall,
    AnswerMessage,
    AnswerToolCall,
    ChatRequest,
    Choice,
    Logprob,
    Logprobs,
    SampledRequest,
    TopLogprob,
    Usage,
    WireMessage,
    WireToolCall,
)
from tunesmith.specs.generation import SamplingSpec

#: The service's word for minus infinity, which JSON can't hold.
_LEAST_LOGPROB = -9999.0
#: A nucleus of nothing isn't defined; this one holds the likeliest token only, which is what 0 means to callers.
_LEAST_TOP_P = 1e-6
_MOST_TOKENS = 1_000_000


def conversation_of(request: ChatRequest) -> Conversation:
    """Return the prompt.

    Raises:
        RequestError: a message has no words, isn't text, or answers a tool call that nobody made.
    """
    shown = as_tool_messages(request.messages)
    messages = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(shown))
    _check_tool_replies(messages)
    # "none" forbids calls; a model that isn't shown the tools can't make one.
    tools = [] if request.tool_choice == "none" else request.tools
    return Conversation(messages, tuple(tool.model_dump(exclude_none=True) for tool in tools))


def sampling_of(request: ChatRequest, default_max_tokens: int) -> SamplingSpec:
    """Return how the answers are to be drawn; more tokens than the context holds end with `length`.

    Raises:
        RequestError: the form of the answers can't be asked for like this.
    """
    limit = request.max_completion_tokens or request.max_tokens or default_max_tokens
    return spec_of(
        request, limit, logprobs=request.logprobs, top_logprobs=request.top_logprobs, output=output_of(request)
    )


def spec_of(request: SampledRequest, most_tokens: int, **more: Any) -> SamplingSpec:
    """Return how answers are to be drawn, as far as all kinds of requests say it; `more` are other settings."""
    return SamplingSpec(
        temperature=request.temperature,
        top_p=max(request.top_p, _LEAST_TOP_P),
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        ignore_eos=request.ignore_eos,
        max_completion_tokens=min(most_tokens, _MOST_TOKENS),
        stop=request.stop_texts,
        seed=request.seed,
        n=request.n,
        **more,
    )


def choice_of(index: int, completion: Completion, tools: ToolUse | None, *, with_logprobs: bool) -> Choice:
    """Return one answer on the wire; `tools` finds its calls."""
    content, calls = (completion.text, ()) if tools is None else tools.read(completion.text)
    called = [
        AnswerToolCall(id=call.id, function=AnswerFunctionCall(name=call.name, arguments=call.arguments))
        for call in calls
    ]
    return Choice(
        index=index,
        message=AnswerMessage(content=content, tool_calls=called or None),
        logprobs=logprobs_of(completion.logprobs) if with_logprobs else None,
        finish_reason=finish_reason_of(completion, has_calls=bool(calls)),
    )


def finish_reason_of(completion: Completion, *, has_calls: bool) -> Literal["stop", "length", "tool_calls"]:
    """Return why an answer ended: an answer that was cut off says so, also among its calls."""
    if completion.finish_reason == "length":
        return "length"
    return "tool_calls" if has_calls else "stop"


def usage_of(completions: Sequence[Completion]) -> Usage:
    """Return the token counts of the answers to one prompt."""
    prompt_tokens = completions[0].prompt_tokens
    completion_tokens = sum(completion.completion_tokens for completion in completions)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def logprobs_of(tokens: Sequence[TokenLogprob]) -> Logprobs:
    """Return tokens with their log-probabilities on the wire."""
    return Logprobs(
        content=[
            Logprob(
                token=token.text,
                logprob=finite_logprob(token.logprob),
                bytes=list(token.text_bytes),
                top_logprobs=[
                    TopLogprob(token=text, logprob=finite_logprob(logprob), bytes=list(raw))
                    for _, text, raw, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )


def finite_logprob(logprob: float) -> float:
    """Return a log-probability as JSON can hold it."""
    return max(logprob, _LEAST_LOGPROB) if not math.isnan(logprob) else _LEAST_LOGPROB


def _message(message: WireMessage, at: str) -> Message:
    calls = message.tool_calls or []
    if calls and message.role != "assistant":
        raise RequestError(
            "Only an assistant's message can have tool calls.", code="invalid_value", param=f"{at}.tool_calls"
        )
    content = _text(message.content, f"{at}.content")
    if content is None and message.role == "assistant":
        content = message.refusal
    if content is None and not calls:
        raise RequestError(
            f"Missing required parameter: '{at}.content'.", code="missing_required_parameter", param=f"{at}.content"
        )
    if message.role == "assistant":
        # "" and null mean the same where only tools are called, and training read them the same.
        content = content or None if calls else content
    # Messages of functions are those of tools by now.
    role = cast("Role", message.role)
    return Message(
        role,
        content,
        message.name,
        tuple(_tool_call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(calls)),
        message.tool_call_id if message.role == "tool" else None,
    )


def _text(content: Any, at: str) -> str | None:
    """Return a message's words: a text, or text parts one behind the other."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(
            f"Invalid type for '{at}': expected a string or an array of parts.", code="invalid_type", param=at
        )
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text" if kind == "text" else "refusal") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(text, str):
            texts.append(text)
        elif isinstance(kind, str) and kind not in ("text", "refusal"):
            raise unsupported(f"{at}[{i}]", f"Parts of type '{kind[:50]}' aren't supported by this server; texts are.")
        else:
            raise RequestError(f"Invalid value for '{at}[{i}]': not a text part.", code="invalid_value", param=at)
    return "".join(texts)


def _tool_call(call: WireToolCall, at: str) -> ToolCall:
    try:
        is_object = isinstance(parse_json(call.function.arguments.encode()), dict)
    except JsonFault:
        is_object = False
    if not is_object:
        raise RequestError(
            f"Invalid '{at}.function.arguments': not a JSON object in a text.",
            code="invalid_value",
            param=f"{at}.function.arguments",
        )
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _check_tool_replies(messages: Sequence[Message]) -> None:
    """Refuse a tool's reply without its call, and a call without its reply.

    Raises:
        RequestError: there is one.
    """
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise RequestError(
                    "A message with role 'tool' must answer a tool call of the assistant's message before it.",
                    code="invalid_value",
                    param=f"messages[{i}].tool_call_id",
                )
            waiting.remove(message.tool_call_id)
        elif waiting:
            break
        waiting += [call.id for call in message.tool_calls]
    if waiting:
        raise RequestError(
            f"The tool call '{waiting[0][:100]}' needs a message with role 'tool' and its 'tool_call_id'.",
            code="invalid_value",
            param="messages",
        )
