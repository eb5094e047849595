"""Tools on the wire: which of them an answer may or must call, and its calls in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.chat.call_grammar import call_grammar
from tunesmith.chat.call_stream import CallPiece, CallStream, read_calls
from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.data.examples import ToolCall
from tunesmith.errors import RequestError
from tunesmith.generate.form_checks import check_form
from tunesmith.generate.request import Request
from tunesmith.rest.wire import ChatRequest, WireFunction
from tunesmith.specs.generation import JsonObjectSpec, JsonSchemaSpec, OutputSpec


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request's `tool_choice` says.

    `names` are the functions that may be called; None: all that are offered.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None


def tool_choice_of(request: ChatRequest) -> ToolChoice:
    """Return what `tool_choice` says.

    Raises:
        RequestError: it isn't one of OpenAI's forms, or names a function that isn't offered.
    """
    said = request.tool_choice
    kind = said.get("type") if isinstance(said, dict) else None
    if said is None or said in ("none", "auto", "required"):
        choice = ToolChoice(said or "auto")
    elif kind == "function":
        choice = ToolChoice("required", (_name(said),))
    elif kind == "allowed_tools":
        choice = _allowed(said.get("allowed_tools"))
    else:
        raise _invalid("expected 'none', 'auto', 'required', a function, or allowed tools")
    if choice.names is not None or choice.mode == "required":
        offered = {tool.function.name for tool in request.tools}
        missing = [name for name in choice.names or () if name not in offered]
        if not offered:
            raise _invalid("it is only allowed when 'tools' are specified")
        if missing:
            raise _invalid(f"there is no function '{missing[0][:100]}' in 'tools'")
    return choice


def _allowed(said: Any) -> ToolChoice:
    mode = said.get("mode") if isinstance(said, dict) else None
    tools = said.get("tools") if isinstance(said, dict) else None
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise _invalid("'allowed_tools' has a 'mode', 'auto' or 'required', and a list of 'tools'")
    return ToolChoice(mode, tuple(_name(tool) for tool in tools))


def _name(said: Any) -> str:
    function = said.get("function") if isinstance(said, dict) and said.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise _invalid('a function is chosen as {"type": "function", "function": {"name": ...}}')
    return name


def _invalid(why: str) -> RequestError:
    return RequestError(f"Invalid 'tool_choice': {why}.", code="invalid_value", param="tool_choice")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How the calls in the answers to one request are found.

    Attributes:
        form: how the model writes calls.
        names: the functions on offer.
        is_certain: whether a grammar vouches for the calls.
    """

    form: ToolCallFormat
    names: tuple[str, ...]
    is_certain: bool

    def stream(self) -> CallStream:
        """Return a reader of one answer that is still growing."""
        return CallStream(self.form, self.names, is_certain=self.is_certain)

    def read(self, text: str) -> tuple[str | None, tuple[ToolCall, ...]]:
        """Return the words and the calls of a whole answer."""
        return read_calls(self.form, text, self.names, is_certain=self.is_certain)


def with_tools(prompt: Request, wire: ChatRequest, form: ToolCallFormat | None) -> tuple[Request, ToolUse | None]:
    """Return the request with what `tools` and `tool_choice` ask of its answers, and how their calls are found.

    A grammar makes calls where they are required, restricted to some functions or to one call, or where a function is
    `strict`; otherwise the model is free to write what it likes.

    Args:
        prompt: the rendered request.
        wire: what was asked.
        form: how the model writes calls; None if it can't.

    Raises:
        RequestError: the model can't write the calls that are asked for.
    """
    choice = tool_choice_of(wire)
    if not wire.tools or choice.mode == "none":
        return prompt, None
    if form is None:
        if choice.mode == "auto":
            return prompt, None
        raise RequestError(
            "The chat template of this model has no form for tool calls, so none can be required.",
            fix="Choose another model, or leave 'tool_choice' out.",
            code="unsupported_parameter",
            param="tool_choice",
        )
    allowed = [
        (place, tool)
        for place, tool in enumerate(wire.tools)
        if choice.names is None or tool.function.name in choice.names
    ]
    output = prompt.sampling.output
    is_forced = (
        choice.mode == "required"
        or choice.names is not None
        or not wire.parallel_tool_calls
        or output is not None
        or any(tool.function.strict for _, tool in allowed)
    )
    if is_forced:
        grammar = call_grammar(
            form,
            [{"function": _function(tool.function, place)} for place, tool in allowed],
            is_required=choice.mode == "required",
            # Choosing one function by name means one call of it.
            is_several=wire.parallel_tool_calls and not _is_named(wire.tool_choice),
            answer_schema=None if choice.mode == "required" else _schema(output),
        )
        prompt = replace(prompt, sampling=prompt.sampling.model_copy(update={"output": grammar}))
    names = tuple(tool.function.name for tool in wire.tools)
    return replace(prompt, shown_ids=form.shown_ids), ToolUse(form, names, is_forced)


def check_parameters(wire: ChatRequest) -> None:
    """Refuse functions whose arguments aren't an object.

    Raises:
        RequestError: there is one.
    """
    for place, tool in enumerate(wire.tools):
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise _invalid_schema(tool.function, place, f"""schema must have the type "object", not {kind!r:.50}.""")


def _function(function: WireFunction, place: int) -> dict[str, Any]:
    """Return a function as a grammar takes it; what can't be guaranteed matters to `strict` functions only.

    Raises:
        RequestError: the schema of such a function can't be guaranteed.
    """
    known = function.model_dump(exclude_none=True)
    try:
        check_form(JsonSchemaSpec(json_schema=function.parameters or {}))
    except RequestError as error:
        if function.strict:
            raise _invalid_schema(function, place, error.message) from error
        known["parameters"] = {"type": "object"}
    return known


def _invalid_schema(function: WireFunction, place: int, why: str) -> RequestError:
    return RequestError(
        f"Invalid schema for function '{function.name[:100]}': {why}",
        code="invalid_function_parameters",
        param=f"tools[{place}].function.parameters",
    )


def blame_tools(error: RequestError) -> RequestError:
    """Return the error with `tools` to blame, where it blames the form of the answer, which was made of them."""
    if error.param != "output":
        return error
    return RequestError(
        f"Calls of these tools can't be guaranteed: {error.message}",
        fix="Make their schemas simpler.",
        code="invalid_function_parameters",
        param="tools",
    )


def _is_named(said: Any) -> bool:
    return isinstance(said, dict) and said.get("type") == "function"


def _schema(output: OutputSpec | None) -> Mapping[str, Any] | None:
    """Return the schema of answers that don't call; None: free text.

    Raises:
        RequestError: their form isn't JSON.
    """
    if isinstance(output, JsonSchemaSpec):
        return output.json_schema
    if output is not None and not isinstance(output, JsonObjectSpec):
        raise RequestError(
            "Answers that may call tools can have no form but JSON.",
            fix="Set 'tool_choice' to 'required' or 'none', or leave out 'tools' or 'structured_outputs'.",
            code="unsupported_parameter",
            param="structured_outputs",
        )
    return None if output is None else {"type": "object"}


def call_deltas(pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """Return pieces of calls as the deltas of a stream; id and name come once, before any arguments."""
    return [
        {
            "index": piece.index,
            "id": piece.id,
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }
        if piece.name
        else {"index": piece.index, "function": {"arguments": piece.arguments}}
        for piece in pieces
    ]
